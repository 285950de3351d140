"""How layers start."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

Start = Literal["torch", "orthogonal", "orthogonal-small-head", "small-head", "corl-ensemble"]


@torch.no_grad()
def start_layers(layers: Iterable[nn.Module], start: Start) -> None:
    """Set the weights and biases of linear layers, in their order, single ones or those of an ensemble [E, in, out].

    `torch`: as they are. `orthogonal`: gain sqrt(2), heads included, biases 0 (IQL, ikostrikov/implicit_q_learning).
    `orthogonal-small-head`: the same, but heads with gain 0.01 (Cal-QL, nakamotoo/Cal-QL).
    `small-head`: biases of hidden layers 0.1, all of the last one from U(-0.003, 0.003) (EDAC, snu-mllab/EDAC).
    `corl-ensemble`: the same, but weights of hidden layers from U(-1/sqrt(out), 1/sqrt(out)), out being a layer's units
    and not its inputs (critics of corl-team/CORL and YangRui2015/RIQL, whose weights are [in, out]).
    """
    chosen = list(layers)
    for number, layer in enumerate(chosen):
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        head = number == len(chosen) - 1
        if start in ("orthogonal", "orthogonal-small-head"):
            gain = 0.01 if head and start == "orthogonal-small-head" else math.sqrt(2.0)
            for matrix in weight if weight.dim() == 3 else (weight,):
                nn.init.orthogonal_(matrix, gain)
            bias.zero_()
        elif start in ("small-head", "corl-ensemble") and head:
            weight.uniform_(-3e-3, 3e-3)
            bias.uniform_(-3e-3, 3e-3)
        elif start in ("small-head", "corl-ensemble"):
            bias.fill_(0.1)
            if start == "corl-ensemble":
                bound = 1.0 / math.sqrt(bias.shape[-1])
                weight.uniform_(-bound, bound)
