"""The tanh-Gaussian policy: a Gaussian whose sample is squashed into (-1, 1) by tanh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deeprl.core import rng
from deeprl.core.spec import Params
from deeprl.nets.agent import Bound, functional_call
from deeprl.nets.init import Start
from deeprl.nets.mlp import MLP, LayerNorm

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


def tanh_normal(
    actor: nn.Module | Bound, params: Params, obs: Float[Tensor, "*B O"]
) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B A"]]:
    """Mean and log standard deviation of a tanh-Gaussian policy before the tanh, in the type of `obs`."""
    mean, log_std = (x.to(obs.dtype) for x in functional_call(actor, params, (obs,)))  # bf16 under autocast
    return mean, log_std


def sample_tanh_normal(
    actor: nn.Module | Bound, params: Params, obs: Float[Tensor, "B O"], key: rng.Key, count: int | None = None
) -> tuple[Float[Tensor, "B *K A"], Float[Tensor, "B *K"]]:
    """Actions in [-1, 1] of a tanh-Gaussian policy, one for each observation, and their log probabilities.

    count: so many for each observation, along an axis of their own.
    """
    mean, log_std = tanh_normal(actor, params, obs)
    if count is not None:
        mean, log_std = (x.unsqueeze(1).expand(-1, count, -1) for x in (mean, log_std))
    noise = rng.normal(key, mean.shape, mean.dtype)
    pre_tanh = mean + torch.exp(log_std) * noise
    return torch.tanh(pre_tanh), tanh_normal_log_prob(noise, log_std, pre_tanh)


def mode_tanh_normal(actor: nn.Module | Bound, params: Params, obs: Float[Tensor, "N O"]) -> Float[Tensor, "N A"]:
    """tanh(mean): the actions in [-1, 1] by which a tanh-Gaussian policy is evaluated."""
    return torch.tanh(tanh_normal(actor, params, obs)[0])


def act_tanh_normal(
    actor: nn.Module | Bound, params: Params, obs: Float[Tensor, "N O"], key: rng.Key, explore: bool
) -> Float[Tensor, "N A"]:
    """Actions in [-1, 1] of a tanh-Gaussian policy: samples, or its mode without `explore`."""
    return sample_tanh_normal(actor, params, obs, key)[0] if explore else mode_tanh_normal(actor, params, obs)


class TanhGaussianActor(nn.Module):
    """MLP with one output layer for the mean and the log standard deviation of a tanh-Gaussian policy."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        log_std: LogStd = "clamp",
        log_std_range: tuple[float, float] = (-20.0, 2.0),
        start: Start = "torch",
        layer_norm: LayerNorm = "none",
    ):
        super().__init__()
        self.trunk = MLP(obs_dim, hidden, 2 * action_dim, start=start, layer_norm=layer_norm)
        self.log_std, self.log_std_range = log_std, log_std_range

    def forward(self, obs: Float[Tensor, "*B O"]) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B A"]]:
        """Mean and log standard deviation before the tanh. The deterministic action is tanh(mean)."""
        mean, raw = self.trunk(obs).chunk(2, dim=-1)
        return mean, bound_log_std(raw, self.log_std, *self.log_std_range)


class FreeStdActor(nn.Module):
    """A tanh-Gaussian policy with one free log sigma per action, the same for all observations.

    trunk: a module that returns the mean before the tanh, such as that of a policy which had no sigma; deviation: what
    sigma is at first.
    """

    def __init__(
        self,
        trunk: nn.Module,
        action_dim: int,
        deviation: float = 1.0,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ):
        super().__init__()
        self.trunk, self.deviation, self.log_std_range = trunk, deviation, log_std_range
        self.raw_log_std = nn.Parameter(torch.empty(action_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Standard deviations as given."""
        nn.init.constant_(self.raw_log_std, math.log(self.deviation))

    def forward(self, obs: Float[Tensor, "*B O"]) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B A"]]:
        """Mean and log standard deviation before the tanh. The deterministic action is tanh(mean)."""
        mean = self.trunk(obs)
        return mean, self.raw_log_std.clamp(*self.log_std_range).expand_as(mean)


class GaussianActor(nn.Module):
    """A Gaussian policy whose mean, not its sample, is squashed into (-1, 1); one free log sigma per action.

    No correction for the tanh belongs in its density (IQL, ikostrikov/implicit_q_learning, policy.py).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        log_std_range: tuple[float, float] = (-5.0, 2.0),
        start: Start = "orthogonal",
    ):
        super().__init__()
        self.trunk = MLP(obs_dim, hidden, action_dim, start=start)
        self.raw_log_std = nn.Parameter(torch.zeros(action_dim))
        self.log_std_range = log_std_range

    def reset_parameters(self) -> None:
        """Standard deviations of 1."""
        nn.init.zeros_(self.raw_log_std)

    def forward(
        self, obs: Float[Tensor, "*B O"], kept: Sequence[Float[Tensor, "*B _"]] = ()
    ) -> tuple[Float[Tensor, "*B A"], Float[Tensor, " A"]]:
        """Mean and log standard deviation. kept: for dropout, factors of the units of each hidden layer."""
        factors = iter(kept)
        for layer in self.trunk:
            obs = layer(obs)
            if kept and not isinstance(layer, nn.Linear):
                obs = obs * next(factors)
        return torch.tanh(obs), self.raw_log_std.clamp(*self.log_std_range)


def normal_log_prob(
    value: Float[Tensor, "*B A"], mean: Float[Tensor, "*B A"], log_std: Float[Tensor, " A"]
) -> Float[Tensor, "*B"]:
    """log N(value; mean, exp(log_std)), summed over the A entries of an action."""
    noise = (value - mean) * torch.exp(-log_std)
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def act_normal(
    actor: nn.Module | Bound, params: Params, obs: Float[Tensor, "N O"], key: rng.Key, explore: bool
) -> Float[Tensor, "N A"]:
    """Actions in [-1, 1] of a Gaussian policy (`GaussianActor`): its mean, or samples, clipped, if `explore`."""
    mean, log_std = functional_call(actor, params, (obs,))
    action = mean.to(obs.dtype)  # bf16 under autocast
    if explore:
        action = (action + log_std.exp() * rng.normal(key, action.shape, action.dtype)).clamp(-1.0, 1.0)
    return action


def act_deterministic(actor: nn.Module | Bound, params: Params, obs: Float[Tensor, "N O"]) -> Float[Tensor, "N A"]:
    """Actions in [-1, 1] of a deterministic policy (`TanhActor`), in the type of `obs`."""
    return functional_call(actor, params, (obs,)).to(obs.dtype)


class TanhActor(nn.Module):
    """The deterministic policy tanh(MLP(obs)), with actions in [-1, 1]."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256), start: Start = "torch"):
        super().__init__()
        self.trunk = MLP(obs_dim, hidden, action_dim, start=start)

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B A"]:
        return torch.tanh(self.trunk(obs))
