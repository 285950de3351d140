"""What each episode still brought from each row of a replay on: the returns that Cal-QL looks at, learned online."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deeprl.replay.transitions import Replay, on_host


class ReturnsToGo:
    """G_t = r_t + discount * G_t+1 of the rows of a replay, values [S, capacity], known once their episode has ended.

    Until then they are -inf, a bound that binds nothing. An episode that is cut counts what it has brought so far, as
    `data.offline.returns_to_go` does. Rewards count as critics learn them, scale * reward + shift. sparse: episodes in
    which all rewards are alike have failed, and would have gone on to: r / (1 - discount).
    """

    def __init__(
        self,
        replay: Replay,
        scale: Float[Tensor, " S"],
        shift: Float[Tensor, " S"],
        discount: Float[Tensor, " S"],
        sparse: bool = False,
    ):
        self._replay, self._sparse = replay, sparse
        self._scaled = scale, shift, discount  # of the agents' states, which may yet be restored
        self.values = torch.full_like(replay.data.reward, -torch.inf)
        self._open = np.zeros((replay.agents, replay.envs), np.int64)  # rows of the episodes in progress

    def add(self, rows: slice) -> None:
        """A step of all environments is in these rows of each agent."""
        self.values[:, rows] = -torch.inf
        self._open = np.minimum(self._open + 1, self._replay.capacity // self._replay.envs)
        data = self._replay.data
        self._end(on_host(data.terminated[:, rows] | data.truncated[:, rows]), rows.start)

    def cut(self, begins: np.ndarray) -> None:
        """Another episode begins where one is in progress: begins [S, N]."""
        self._end(begins & (self._open > 0), self._replay.newest)

    def _end(self, ended: np.ndarray, start: int) -> None:
        envs, capacity = self._replay.envs, self._replay.capacity
        for agent, env in np.argwhere(ended):
            back = np.arange(self._open[agent, env])
            rows = torch.from_numpy((start + env - envs * back) % capacity).to(self.values.device)
            raw = self._replay.data.reward[agent, rows].double().cpu().numpy()
            scale, shift, discount = (float(x[agent]) for x in self._scaled)
            reward = scale * raw + shift
            total, found = 0.0, np.empty_like(reward)
            for i, r in enumerate(reward):  # from the last step backwards
                total = found[i] = r + discount * total
            if self._sparse and np.ptp(reward) == 0.0:
                found[:] = reward[0] / (1.0 - discount)
            self.values[agent, rows] = torch.from_numpy(found).to(self.values)
            self._open[agent, env] = 0

    def state_dict(self) -> dict[str, Any]:
        """All returns, and how far the episodes in progress reach back."""
        return {"values": self.values.cpu(), "open": self._open.copy()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, of a replay that was not larger."""
        self.values[:, : saved["values"].shape[1]] = saved["values"].to(self.values.device)  # of a smaller replay, too
        self._open = torch.as_tensor(saved["open"]).numpy().copy()
