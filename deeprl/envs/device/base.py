"""What an environment on the device is, and what is done alike for all of them: time limits, new episodes.

An environment is written for one, with tensors without a leading axis; `torch.vmap` makes many of it. It branches on no
value: both sides are computed, and `torch.where` chooses.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from deeprl.core import rng
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import tree_map


class Outcome(NamedTuple):
    """What a step of an environment came to. All but the state, a tree of tensors, are 0-d."""

    state: Any
    reward: Float[Tensor, ""]
    terminated: Bool[Tensor, ""]


@runtime_checkable
class DeviceEnv(Protocol):
    """An environment as pure functions.

    spec: shapes and bounds, as those of the environment of the same name elsewhere. limit: the step at which an episode
    is truncated, 0: never.
    """

    spec: EnvSpec
    limit: int

    def reset(self, key: rng.Key) -> Any:
        """The state in which an episode begins, a tree of tensors. Draws from `key` alone."""

    def observe(self, state: Any) -> Shaped[Tensor, "*O"]:
        """What an agent sees of a state, of the type of `spec`."""

    def step(self, state: Any, action: Shaped[Tensor, "*A"], key: rng.Key) -> Outcome:
        """The state after it, with the reward of the step. action: [A] between the bounds of `spec`, or 0-d int64."""


class Now(NamedTuple):
    """An environment in play: its state, and the steps of the episode so far."""

    state: Any
    steps: Int[Tensor, ""]


class Played(NamedTuple):
    """A step in play. obs: what is acted on next, which belongs to a new episode if one has ended (`is_first`);
    next_obs: the true successor."""

    now: Now
    obs: Shaped[Tensor, "*O"]
    next_obs: Shaped[Tensor, "*O"]
    reward: Float[Tensor, ""]
    terminated: Bool[Tensor, ""]
    truncated: Bool[Tensor, ""]
    is_first: Bool[Tensor, ""]


def begin(env: DeviceEnv, key: rng.Key) -> tuple[Now, Shaped[Tensor, "*O"]]:
    """An environment at the beginning of an episode, and what is seen."""
    state = env.reset(key)
    return Now(state, torch.zeros((), dtype=torch.int64, device=key.device)), env.observe(state)


def step(env: DeviceEnv, now: Now, action: Shaped[Tensor, "*A"], key: rng.Key, limit: int | None = None) -> Played:
    """One step, after whose episode another begins at once. action: [A] in [-1, 1], or 0-d int64 from 0.

    limit: in place of the environment's own.
    """
    limit = env.limit if limit is None else limit
    step_key, reset_key = rng.split(key, 2)
    after = env.step(now.state, to_bounds(env.spec, action), step_key)
    steps = now.steps + 1
    truncated = steps >= limit if limit else torch.zeros_like(after.terminated)
    ended = after.terminated | truncated
    state = tree_map(lambda new, old: torch.where(ended, new, old), env.reset(reset_key), after.state)
    going_on = Now(state, torch.where(ended, 0, steps))
    return Played(
        going_on, env.observe(state), env.observe(after.state), after.reward, after.terminated, truncated, ended
    )


def to_bounds(spec: EnvSpec, action: Shaped[Tensor, "*A"]) -> Shaped[Tensor, "*A"]:
    """Actions in [-1, 1] in the environment's own units, cut to its bounds; discrete ones counted as it does."""
    if spec.discrete:
        return action + spec.action_start
    bounds = zip(action.unbind(-1), spec.action_low, spec.action_high, strict=True)
    return torch.stack([(low + (a + 1.0) * 0.5 * (high - low)).clamp(low, high) for a, low, high in bounds], -1)
