"""What moves between the floors: the shapes of an environment, a transition, a training batch.

Shape letters used in annotations: S agents of the population, E critics of an ensemble, N environments of one agent,
B batch, T time, O observation, A action, K bins, Z latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Metrics = dict[str, Tensor]  # name -> 0-d tensor of one agent (or [S] for a population)
Params = dict[str, Tensor]  # parameter name -> tensor, as `dict(module.named_parameters())`


@dataclass(frozen=True)
class EnvSpec:
    """Shapes and bounds of one environment with a `Box` observation and a `Box` action space.

    obs_shape: shape of one observation. action_dim: A. action_low, action_high: bounds of each action in the
    environment's own units (tuples of A floats); agents act in [-1, 1].
    """

    obs_shape: tuple[int, ...]
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EnvSpec:
        """From what `dataclasses.asdict` gave, after a way through JSON (tuples have become lists)."""
        return cls(
            tuple(values["obs_shape"]), values["action_dim"], tuple(values["action_low"]), tuple(values["action_high"])
        )

    @property
    def obs_dim(self) -> int:
        """O of a flat observation."""
        return int(torch.Size(self.obs_shape).numel())


class Transition(NamedTuple):
    """One step of every environment of a population, on the host: arrays or tensors [S, N, ...].

    `next_obs` is the true successor, never the first observation of the next episode. `terminated` and `truncated`
    are bool; only `terminated` stops bootstrapping.
    """

    obs: Any  # [S, N, O]
    action: Any  # [S, N, A] in [-1, 1]
    reward: Any  # [S, N]
    terminated: Any  # [S, N]
    truncated: Any  # [S, N]
    next_obs: Any  # [S, N, O]


class Batch(NamedTuple):
    """What an update learns from: B transitions of one agent. `discount` = gamma * (1 - terminated)."""

    obs: Float[Tensor, "B O"]
    action: Float[Tensor, "B A"]
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    next_obs: Float[Tensor, "B O"]
