"""The tanh-Gaussian policy: a Gaussian whose sample is squashed into (-1, 1) by tanh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deeprl.nets.mlp import MLP

LogStd = Literal["clamp", "tanh"]


def bound_log_std(raw: Float[Tensor, "*B A"], kind: LogStd, low: float, high: float) -> Float[Tensor, "*B A"]:
    """log sigma in [low, high]: `clamp` cuts (no gradient outside), `tanh` maps smoothly into the range."""
    if kind == "clamp":
        return raw.clamp(low, high)
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)


def tanh_normal_log_prob(
    noise: Float[Tensor, "*B A"], log_std: Float[Tensor, "*B A"], pre_tanh: Float[Tensor, "*B A"]
) -> Float[Tensor, "*B"]:
    """log pi(a | s) of a = tanh(u) with u = mean + exp(log_std) * noise, summed over the action's A entries.

    log N(u) - log(1 - tanh(u)^2), the second term as 2 (log 2 - u - softplus(-2u)): exact where tanh saturates.
    """
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    jacobian = 2.0 * (math.log(2.0) - pre_tanh - nn.functional.softplus(-2.0 * pre_tanh))
    return (gaussian - jacobian).sum(-1)


class TanhGaussianActor(nn.Module):
    """MLP with one output layer for the mean and the log standard deviation of a tanh-Gaussian policy."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        log_std: LogStd = "clamp",
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ):
        super().__init__()
        self.trunk = MLP(obs_dim, hidden, 2 * action_dim)
        self.log_std, self.log_std_range = log_std, log_std_range

    def forward(self, obs: Float[Tensor, "*B O"]) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B A"]]:
        """Mean and log standard deviation before the tanh. The deterministic action is tanh(mean)."""
        mean, raw = self.trunk(obs).chunk(2, dim=-1)
        return mean, bound_log_std(raw, self.log_std, *self.log_std_range)


class TanhActor(nn.Module):
    """The deterministic policy tanh(MLP(obs)), with actions in [-1, 1]."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256)):
        super().__init__()
        self.trunk = MLP(obs_dim, hidden, action_dim)

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B A"]:
        return torch.tanh(self.trunk(obs))
