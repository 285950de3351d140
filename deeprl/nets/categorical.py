"""Values as distributions over bins: targets for them, and their means.

Farebrother et al. 2024, "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL",
arXiv 2403.03950 (two-hot, HL-Gauss); Bellemare et al. 2017, arXiv 1707.06887 (C51).

A target is a distribution [*B, K]; a network gives logits [*B, K]; the value is the mean over the K centres.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def atoms(low: float, high: float, bins: int, device: torch.device | None = None) -> Float[Tensor, " K"]:
    """Centres that reach from `low` to `high` themselves: those of C51 and of two-hot."""
    return torch.linspace(low, high, bins, device=device)


def bin_edges(low: float, high: float, bins: int, device: torch.device | None = None) -> Float[Tensor, " K1"]:
    """The K + 1 edges of K bins that fill [low, high]: those of HL-Gauss."""
    return torch.linspace(low, high, bins + 1, device=device)


def bin_centres(edges: Float[Tensor, " K1"]) -> Float[Tensor, " K"]:
    """The middles of the bins between `edges`."""
    return 0.5 * (edges[1:] + edges[:-1])


def mean(logits: Float[Tensor, "*B K"], centres: Float[Tensor, " K"]) -> Float[Tensor, "*B"]:
    """The value that logits stand for: sum_i softmax(logits)_i * centre_i."""
    return (torch.softmax(logits, -1) * centres).sum(-1)


def two_hot(value: Float[Tensor, "*B"], centres: Float[Tensor, " K"]) -> Float[Tensor, "*B K"]:
    """All mass on the two centres next to each value, so that the mean is the value (clipped to the ends).

    centres: evenly spaced.
    """
    return _spread(value.unsqueeze(-1), centres).squeeze(-2)


def project(
    probs: Float[Tensor, "*B K"], values: Float[Tensor, "*B K"], centres: Float[Tensor, " K"]
) -> Float[Tensor, "*B K"]:
    """C51's projection: mass `probs` that has moved to `values` is shared out to the two centres next to it.

    p_i = sum_j probs_j * max(0, 1 - |values_j - centre_i| / width) with values clipped to the ends (Eq. 7 there). Dense
    and without scatter: the same bits on every device, and a value that hits a centre needs no case of its own.
    """
    return (probs.unsqueeze(-1) * _spread(values, centres)).sum(-2)


def hl_gauss(value: Float[Tensor, "*B"], edges: Float[Tensor, " K1"], ratio: float = 0.75) -> Float[Tensor, "*B K"]:
    """A Gaussian around each value, cut to [edges[0], edges[-1]] and integrated over the bins (Sec. 3.1 there).

    ratio: its standard deviation in bin widths. Values beyond the ends are clipped first: their mass would underflow.
    Near an end half of the Gaussian is cut away and the mean lies further inside: leave head-room.
    """
    sigma = ratio * (edges[1] - edges[0])
    value = value.clamp(edges[0], edges[-1])
    cdf = 0.5 * (1.0 + torch.erf((edges - value.unsqueeze(-1)) / (sigma * math.sqrt(2.0))))
    mass = cdf[..., 1:] - cdf[..., :-1]
    return mass / (cdf[..., -1:] - cdf[..., :1])


def cross_entropy(logits: Float[Tensor, "*B K"], target: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """-sum_i target_i log softmax(logits)_i."""
    return -(target * torch.log_softmax(logits, -1)).sum(-1)


def entropy(probs: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """-sum_i p_i log p_i, with 0 log 0 = 0. The cross entropy can be no smaller than that of its target."""
    return -torch.special.xlogy(probs, probs).sum(-1)


def _spread(values: Float[Tensor, "*B J"], centres: Float[Tensor, " K"]) -> Float[Tensor, "*B J K"]:
    """The shares of centres in each value: linear between the two that are next to it."""
    width = centres[1] - centres[0]
    distance = (values.clamp(centres[0], centres[-1]).unsqueeze(-1) - centres).abs()
    return torch.relu(1.0 - distance / width)
