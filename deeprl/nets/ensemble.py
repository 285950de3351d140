"""E networks of one shape as one batched module: one matrix product per layer for the whole ensemble."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl.core import rng
from deeprl.core.spec import Params
from deeprl.nets.agent import Bound, functional_call
from deeprl.nets.init import Start, start_layers
from deeprl.nets.mlp import NORM_EPS, LayerNorm

Part = int | Int[Tensor, " part"] | None  # of an ensemble: the first so many, those of these numbers, or all


def part_of(tensor: Float[Tensor, "E *I"], part: Part) -> Float[Tensor, "part *I"]:
    """The entries of the first axis that are a `Part`."""
    if not isinstance(part, Tensor):
        return tensor[:part]
    chosen = (part.unsqueeze(1) == torch.arange(len(tensor), device=part.device)).to(tensor.dtype)
    return (chosen @ tensor.flatten(1)).unflatten(-1, tensor.shape[1:])  # its gradient is a product, not a scatter


class EnsembleLinear(nn.Module):
    """E independent linear layers. weight: [E, in, out], bias: [E, out].

    The layout is [in, out], transposed against `nn.Linear`: its gradient comes out contiguous under a vmap over agents.
    """

    def __init__(self, size: int, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, in_dim, out_dim))
        self.bias = nn.Parameter(torch.empty(size, out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, as `nn.Linear`."""
        bound = 1.0 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Float[Tensor, "E *B I"], first: Part = None) -> Float[Tensor, "E *B J"]:
        """first: compute only so many layers of the ensemble, or those of these numbers [first], for x [first, *B, I].

        A single output, if a layer has but one, stays in float32 under autocast (`nets.mlp.Linear`).
        """
        if x.dim() != 3:
            rows = self.forward(x.reshape(len(x), -1, x.shape[-1]), first)
            return rows.reshape(*x.shape[:-1], rows.shape[-1])
        weight, bias = part_of(self.weight, first), part_of(self.bias, first).unsqueeze(-2)
        if weight.shape[-1] > 1:
            return x @ weight + bias
        return (x * weight.transpose(-1, -2)).sum(-1, keepdim=True) + bias


class EnsembleLayerNorm(nn.Module):
    """E independent layer normalisations of `units` each. weight, bias: [E, units]."""

    def __init__(self, size: int, units: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, units))
        self.bias = nn.Parameter(torch.zeros(size, units))

    def reset_parameters(self) -> None:
        """Weights 1 and biases 0, as `nn.LayerNorm`."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "E *B I"], first: Part = None) -> Float[Tensor, "E *B I"]:
        """first: as in `EnsembleLinear`."""
        shape = (-1, *[1] * (x.dim() - 2), x.shape[-1])
        weight, bias = part_of(self.weight, first).reshape(shape), part_of(self.bias, first).reshape(shape)
        return nn.functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * weight + bias


class CriticEnsemble(nn.Module):
    """E state-action values Q_i(s, a), each an MLP with ReLU on the concatenated observation and action.

    hidden: units of each hidden layer; critics: E; start: how layers start (`nets.start_layers`); layer_norm: hidden
    layers are normalised `before` their activation (RLPD, WSRL), or `after` it (ReBRAC).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        start: Start = "torch",
        layer_norm: LayerNorm = "none",
    ):
        super().__init__()
        dims = [obs_dim + action_dim, *hidden, 1]
        self.critics, self.layer_norm = critics, layer_norm
        self.layers = nn.ModuleList(EnsembleLinear(critics, i, j) for i, j in itertools.pairwise(dims))
        normed = hidden if layer_norm != "none" else ()
        self.norms = nn.ModuleList(EnsembleLayerNorm(critics, units) for units in normed)
        self.start = start
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What `start` adds to the layers' own."""
        start_layers(self.layers, self.start)

    def forward(
        self,
        obs: Float[Tensor, "*B O"],
        action: Float[Tensor, "*B A"],
        first: int | None = None,
        *,
        per_critic: bool = False,
        which: Int[Tensor, " part"] | None = None,
    ) -> Float[Tensor, "E ..."]:
        """Q values of all networks, [E, *B], of the `first` so many, [first, *B], or of those of the numbers `which`.

        per_critic: obs [E, *B, O] and action [E, *B, A] hold a batch for each network.
        """
        part = (first,) if first else () if which is None else (which,)  # layers put in place of these need not know it
        x = torch.cat([obs, action], dim=-1)
        if not per_critic:
            x = x.expand((first or self.critics) if which is None else len(which), *x.shape)
        for number, layer in enumerate(self.layers[:-1]):
            x = layer(x, *part)
            if self.layer_norm == "before":
                x = self.norms[number](x, *part)
            x = torch.relu(x)
            if self.layer_norm == "after":
                x = self.norms[number](x, *part)
        return self.layers[-1](x, *part).squeeze(-1)


def first_q(
    critic: nn.Module | Bound, params: Params, obs: Float[Tensor, "B O"], action: Float[Tensor, "B A"]
) -> Float[Tensor, " B"]:
    """Q_1(s, a), in the type of `obs`; ensembles whose `forward` takes `first` do not compute the other critics."""
    module = critic.module if isinstance(critic, Bound) else critic
    alone = {"first": 1} if "first" in inspect.signature(module.forward).parameters else {}
    return functional_call(critic, params, (obs, action), alone).to(obs.dtype)[0]


def some_qs(
    critic: nn.Module | Bound,
    params: Params,
    obs: Float[Tensor, "*B O"],
    action: Float[Tensor, "*B A"],
    which: Int[Tensor, " part"] | None,
) -> Float[Tensor, "part *B"]:
    """Q values of the critics of these numbers, or of all, in the type of `obs`.

    Ensembles whose `forward` takes `which` do not compute the others.
    """
    module = critic.module if isinstance(critic, Bound) else critic
    if which is not None and "which" in inspect.signature(module.forward).parameters:
        return functional_call(critic, params, (obs, action), {"which": which}).to(obs.dtype)
    qs = functional_call(critic, params, (obs, action)).to(obs.dtype)
    return qs if which is None else qs[which]


def drawn_critics(key: rng.Key, critics: int, count: int, twice: bool = True) -> Int[Tensor, " part"] | None:
    """The numbers of `count` critics; None, which is all of them, for a count of 0.

    twice: one may be drawn more than once (WSRL), otherwise not (REDQ, RLPD).
    """
    if count == 0:
        return None
    return rng.randint(key, (count,), critics) if twice else rng.permutation(key, critics)[:count]
