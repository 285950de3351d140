"""Replay: one ring buffer of transitions for every agent of a population, on the training device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from deeprl import rng
from deeprl.errors import DeeprlError
from deeprl.spec import Batch, EnvSpec, Transition


class Stored(NamedTuple):
    """The arrays of a buffer: [S, capacity, ...] for a population, [capacity, ...] for one agent.

    `next_obs` is stored, not derived from the following row, so that the true final observation of an episode is there.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_obs: Tensor


class Replay:
    """Ring buffers of `capacity` transitions per agent; all agents of a population insert in lock-step.

    data: `Stored`, float32 but for `terminated` (bool). size: 0-d int64 tensor, transitions stored so far per agent
    (on the device, so that a compiled sampler need not ask the host).
    """

    def __init__(self, agents: int, capacity: int, spec: EnvSpec, envs: int = 1, device: torch.device | str = "cpu"):
        self.capacity = capacity // envs * envs  # a step's rows never wrap around
        if self.capacity == 0:
            raise DeeprlError(f"buffer_size {capacity} is smaller than the {envs} environments of one agent")

        def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((agents, self.capacity, *shape), dtype=dtype, device=device)

        obs_shape = spec.obs_shape
        self.data = Stored(rows(*obs_shape), rows(spec.action_dim), rows(), rows(dtype=torch.bool), rows(*obs_shape))
        self.size = torch.zeros((), dtype=torch.int64, device=device)
        self._inserted = 0

    def add(self, transition: Transition) -> None:
        """Store one step of all environments: fields [S, N, ...]."""
        width = transition.reward.shape[1]
        start = self._inserted % self.capacity
        for name, rows in self.data._asdict().items():
            rows[:, start : start + width].copy_(torch.as_tensor(getattr(transition, name)))
        self._inserted += width
        self.size.fill_(min(self._inserted, self.capacity))

    def state_dict(self) -> dict[str, Any]:
        """The filled rows and the write position."""
        filled = int(self.size)
        rows = {name: value[:, :filled].cpu() for name, value in self.data._asdict().items()}
        return {"inserted": self._inserted, "rows": rows}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the capacity must be the same."""
        self._inserted = saved["inserted"]
        filled = min(self._inserted, self.capacity)
        self.size.fill_(filled)
        for name, value in self.data._asdict().items():
            value[:, :filled].copy_(saved["rows"][name])


def sample(data: Stored, size: Tensor, key: rng.Key, batch_size: int, discount: float | Float[Tensor, ""]) -> Batch:
    """`batch_size` transitions of one agent, uniformly with replacement. discount: gamma of that agent."""
    index = rng.randint(key, (batch_size,), size)
    terminated = data.terminated[index].to(data.reward.dtype)
    return Batch(
        data.obs[index], data.action[index], data.reward[index], discount * (1.0 - terminated), data.next_obs[index]
    )
