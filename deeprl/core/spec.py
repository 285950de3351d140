"""What moves between the floors: the shapes of an environment, a transition, a training batch.

Shape letters used in annotations: S agents of the population, E critics of an ensemble, N environments of one agent,
B batch, T time, O observation, A action, K bins, Z latent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Metrics = dict[str, Tensor]  # name -> 0-d tensor of one agent (or [S] for a population)
Params = dict[str, Tensor]  # parameter name -> tensor, as `dict(module.named_parameters())`

# What an agent acts on and how: observations of its N environments, where an episode has just begun, actions; what it
# remembers from step to step, a tree of tensors [N, ...], or () (`deeprl.core.carry`).
Obs = Float[Tensor, "N O"]
First = Bool[Tensor, " N"]
Actions = Float[Tensor, "N A"]
Carry = Any
Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class EnvSpec:
    """Shapes, types and bounds of one environment with `Box` observations and `Box` or `Discrete` actions.

    obs_shape: shape of one observation. action_dim: A of continuous actions, 0 for discrete ones. action_low,
    action_high: bounds of each continuous action in the environment's own units (tuples of A floats); agents act in
    [-1, 1]. obs_dtype: float32, or uint8 or bool for images that have it. actions: number of discrete actions, 0 for
    continuous ones; agents count them from 0, the environment from action_start. frame_stack: frames stacked along
    the first axis of an observation, 0 for a single frame or a vector. action_repeat: simulator steps of one step of
    the environment, 0 where they vary (`deeprl.envs.units`). score_range: the returns of a random and of an expert
    policy, which a normalised score puts at 0 and 100; empty where nobody has published them. action_dtype: the type
    of floats that the environment takes as continuous actions.
    """

    obs_shape: tuple[int, ...]
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    obs_dtype: str = "float32"
    actions: int = 0
    action_start: int = 0
    frame_stack: int = 0
    action_repeat: int = 1
    score_range: tuple[float, ...] = ()
    action_dtype: str = "float32"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EnvSpec:
        """From what `dataclasses.asdict` gave, after a way through JSON (tuples have become lists)."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(**arguments)

    @property
    def obs_dim(self) -> int:
        """O of a flat observation."""
        return int(torch.Size(self.obs_shape).numel())

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers 0 .. actions - 1."""
        return self.actions > 0

    @functools.cached_property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of continuous actions, [A] each: in the type of the environment's actions, at least float32."""
        dtype = np.promote_types(self.action_dtype, np.float32)
        return np.asarray(self.action_low, dtype), np.asarray(self.action_high, dtype)

    @property
    def image(self) -> bool:
        """Whether observations have more than one axis."""
        return len(self.obs_shape) > 1


class Transition(NamedTuple):
    """One step of every environment of a population, on the host: arrays or tensors [S, N, ...].

    `next_obs` is the true successor, never the first observation of the next episode. `terminated` and `truncated`
    are bool; only `terminated` stops bootstrapping.
    """

    obs: Any  # [S, N, *O]
    action: Any  # [S, N, A] in [-1, 1], or [S, N] of discrete actions
    reward: Any  # [S, N]
    terminated: Any  # [S, N]
    truncated: Any  # [S, N]
    next_obs: Any  # [S, N, *O]


class Seen(NamedTuple):
    """What an agent sees after a step of its N environments.

    obs: what it acts on next, so that the first observation of a new episode is there and the final one of the old is
    not; is_first: where an episode has just begun; reward: of the step.
    """

    obs: Shaped[Tensor, "N *O"]
    is_first: Bool[Tensor, " N"]
    reward: Float[Tensor, " N"]


class Batch(NamedTuple):
    """What an update learns from: B transitions of one agent. `discount` = gamma^m * (1 - terminated), m steps on.

    action: float [B, A], or int64 [B] of discrete actions. reward: the discounted sum of the m rewards.
    """

    obs: Shaped[Tensor, "B *O"]
    action: Shaped[Tensor, "B *A"]
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    next_obs: Shaped[Tensor, "B *O"]
