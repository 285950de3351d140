"""How layers start."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

Start = Literal[
    "torch",
    "orthogonal",
    "orthogonal-small-head",
    "orthogonal-small-last",
    "xavier",
    "small-head",
    "smaller-head",
    "corl-ensemble",
]


@torch.no_grad()
def start_layers(layers: Iterable[nn.Module], start: Start) -> None:
    """Set the weights and biases of linear layers, in their order, single ones or those of an ensemble [E, in, out].

    `torch`: as they are. `orthogonal`: gain sqrt(2), heads included, biases 0 (IQL, ikostrikov/implicit_q_learning).
    `orthogonal-small-head`: the same, but heads with gain 0.01 (Cal-QL, nakamotoo/Cal-QL).
    `orthogonal-small-last`: gain sqrt(2), but the last hidden layer with gain 0.01 (WSRL, zhouzypaul/wsrl).
    `xavier`: Glorot-uniform, U(-sqrt(6 / (in + out)), sqrt(6 / (in + out))), biases 0 (RLPD, ikostrikov/rlpd).
    `small-head`: biases of hidden layers 0.1, all of the last one from U(-0.003, 0.003) (EDAC, snu-mllab/EDAC).
    `smaller-head`: the same with U(-0.001, 0.001) (the policy of ReBRAC, DT6A/ReBRAC).
    `corl-ensemble`: as `small-head`, but weights of hidden layers from U(-1/sqrt(out), 1/sqrt(out)), out being a
    layer's units and not its inputs (critics of corl-team/CORL and YangRui2015/RIQL, whose weights are [in, out]).
    """
    chosen = list(layers)
    for number, layer in enumerate(chosen):
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        head = number == len(chosen) - 1
        if start.startswith("orthogonal"):
            small = {"orthogonal-small-head": len(chosen) - 1, "orthogonal-small-last": len(chosen) - 2}.get(start)
            for matrix in weight if weight.dim() == 3 else (weight,):
                nn.init.orthogonal_(matrix, 0.01 if number == small else math.sqrt(2.0))
            bias.zero_()
        elif start == "xavier":
            bound = math.sqrt(6.0 / (weight.shape[-1] + weight.shape[-2]))
            weight.uniform_(-bound, bound)
            bias.zero_()
        elif start in _HEADS and head:
            weight.uniform_(-_HEADS[start], _HEADS[start])
            bias.uniform_(-_HEADS[start], _HEADS[start])
        elif start in _HEADS:
            bias.fill_(0.1)
            if start == "corl-ensemble":
                bound = 1.0 / math.sqrt(bias.shape[-1])
                weight.uniform_(-bound, bound)


_HEADS = {"small-head": 3e-3, "smaller-head": 1e-3, "corl-ensemble": 3e-3}  # bounds of the last layer's numbers
