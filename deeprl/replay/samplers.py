"""Samplers: which rows of one agent's replay an update learns from, and how they become a batch.

Pure functions for one agent, vmapped and compiled together with the update. Rows are chosen by age, so that no window
of n steps ever runs over the place where the ring is being written; windows end with their episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from deeprl.core import rng
from deeprl.core.spec import Batch
from deeprl.replay.rows import image_rows
from deeprl.replay.transitions import Extent, Stored, StoredFrames

_BLOCK = 256  # priorities are summed in blocks of so many


class Window(NamedTuple):
    """How rows become transitions of a batch: `steps` n of an n-step return, `envs` N of one agent, frames stacked;
    `before`: steps that must be known from before the first one, if its episode has them."""

    steps: int = 1
    envs: int = 1
    frame_stack: int = 0
    before: int = 0


def sample(
    data: Stored,
    size: Tensor,
    key: rng.Key,
    batch_size: int,
    discount: float | Float[Tensor, ""],
    first: int | Int[Tensor, ""] = 0,
) -> Batch:
    """`batch_size` transitions of one agent, uniformly with replacement. discount: gamma of that agent.

    They come from the rows first .. first + size - 1.
    """
    return transitions(data, first + rng.randint(key, (batch_size,), size), discount)


def mixed(
    online: tuple[Stored, Tensor],
    offline: tuple[Stored, Int[Tensor, ""], Int[Tensor, ""]] | None,
    share: float,
    key: rng.Key,
    batch_size: int,
    discount: float | Float[Tensor, ""],
) -> tuple[Batch, tuple[Int[Tensor, " K"], Int[Tensor, " R"]]]:
    """Transitions of which `share`, K of them, come from the data that an agent keeps, first, and R from its replay.

    And their rows. online: arrays and how many rows are filled; offline: arrays of all datasets, the agent's first row
    in them, and how many it has; None where it keeps none. All are drawn uniformly with replacement, each part with a
    key of its own.
    """
    kept = round(share * batch_size) if offline is not None else 0
    keys, none = rng.split(key, 2), torch.zeros(0, dtype=torch.int64, device=key.device)
    old = offline[1] + rng.randint(keys[0], (kept,), offline[2]) if offline is not None and kept else none
    new = rng.randint(keys[1], (batch_size - kept,), online[1]) if kept < batch_size else none
    parts = [transitions(offline[0], old, discount)] if offline is not None and kept else []
    parts += [transitions(online[0], new, discount)] if kept < batch_size else []
    return joined(parts), (old, new)


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, in their order."""
    return batches[0] if len(batches) == 1 else Batch(*(torch.cat(column) for column in zip(*batches, strict=True)))


def transitions(data: Stored, row: Int[Tensor, " B"], discount: float | Float[Tensor, ""]) -> Batch:
    """These rows as a batch. discount: gamma of the agent."""
    terminated = data.terminated[row].to(data.reward.dtype)
    obs, next_obs = seen_in(data.obs, row), seen_in(data.next_obs, row)
    return Batch(obs, data.action[row], data.reward[row], discount * (1.0 - terminated), next_obs)


def seen_in(stored: Shaped[Tensor, "R *O"], row: Int[Tensor, " B"]) -> Shaped[Tensor, "B *O"]:
    """The observations in these rows."""
    return image_rows(stored, row) if stored.ndim > 2 else stored[row]


def uniform_rows(
    data: Stored | StoredFrames, extent: Extent, key: rng.Key, batch_size: int, window: Window
) -> Int[Tensor, " B"]:
    """Rows drawn uniformly, with replacement, from those whose whole window is stored.

    There must be one: at least `steps` * `envs` transitions have to be stored.
    """
    first, end = _ages(data, extent, window)
    age = first + rng.randint(key, (batch_size,), end - first)
    return (extent.oldest + age) % data.reward.shape[0]


def prioritized(
    data: Stored | StoredFrames,
    extent: Extent,
    priority: Float[Tensor, " P"],
    key: rng.Key,
    batch_size: int,
    window: Window,
    beta: Float[Tensor, ""],
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Rows drawn in proportion to their priority, and their importance weights (Schaul et al. 2016, Sec. 3.3-3.4).

    P(i) = p_i / sum p, stratified: one row from each of B equal parts of the sum. w_i = (N P(i))^-beta, divided by the
    largest of the batch; N rows can be drawn. priority: already raised to the power alpha (`Priorities.values`).
    """
    first, end = _ages(data, extent, window)
    capacity = data.reward.shape[0]
    row = torch.arange(len(priority), device=priority.device)
    age = torch.where(row < extent.oldest, row + capacity, row) - extent.oldest
    blocks = torch.where((age >= first) & (age < end) & (row < capacity), priority, 0.0).reshape(-1, _BLOCK)
    sums = blocks.sum(-1)
    total = sums.sum()
    part = (torch.arange(batch_size, device=key.device) + rng.uniform(key, (batch_size,))) / batch_size
    block, rest = _find(sums, part * total)
    inside, _ = _find(blocks[block], rest)
    row = block * _BLOCK + inside
    weight = ((end - first) * priority[row] / total) ** -beta
    return row, weight / weight.amax()


def n_step(
    data: Stored | StoredFrames, row: Int[Tensor, " B"], window: Window, discount: float | Float[Tensor, ""]
) -> Batch:
    """The n-step transitions that begin in these rows.

    reward = sum_{k<m} gamma^k r_{t+k} and discount = gamma^m (1 - terminated), where m <= n steps are left until the
    episode ends: a termination stops bootstrapping, a time limit ends the sum and bootstraps from its own last
    observation.
    """
    rows, counted, last = _stretch(data, row, window)
    powers = discount ** torch.arange(window.steps, device=row.device)
    reward = (data.reward[rows] * powers * counted).sum(-1)
    steps = counted.sum(-1)
    going_on = 1.0 - data.terminated[last].to(reward.dtype)
    bootstrap = discount**steps * going_on
    return Batch(
        _observations(data, row, window, 0), data.action[row], reward, bootstrap, _observations(data, last, window, 1)
    )


def _stretch(
    data: Stored | StoredFrames, row: Int[Tensor, " B"], window: Window
) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"], Int[Tensor, " B"]]:
    """The rows of the n steps from these on; 1 for those up to the end of the episode, else 0; the last one with 1."""
    rows = (row[:, None] + torch.arange(window.steps, device=row.device) * window.envs) % data.reward.shape[0]
    counted = _before_first(data.terminated[rows] | data.truncated[rows])
    return rows, counted, rows.gather(1, counted.sum(-1, keepdim=True) - 1).squeeze(1)


def actions_from(
    data: Stored, row: Int[Tensor, " B"], window: Window
) -> tuple[Float[Tensor, "B n A"], Float[Tensor, "B A"]]:
    """The actions of the n steps that begin in these rows, zeros beyond the end of their episode; and the last one."""
    rows, counted, last = _stretch(data, row, window)
    return data.action[rows] * counted.unsqueeze(-1).to(data.action.dtype), data.action[last]


def actions_before(data: Stored, extent: Extent, row: Int[Tensor, " B"], window: Window) -> Float[Tensor, "B A"]:
    """What each episode had done just before these rows, drawn with `window.before`; zeros at its beginning."""
    capacity = data.reward.shape[0]
    before, age = (row - window.envs) % capacity, (row - extent.oldest) % capacity
    same = (age >= window.envs) & ~(data.terminated[before] | data.truncated[before])
    return torch.where(same.unsqueeze(-1), data.action[before], 0.0)


class Priorities:
    """The priorities of a population's rows: values [S, P] float32 (P: the capacity, rounded up), largest [S].

    A new transition gets the largest priority so far, that it may be seen at least once.
    """

    def __init__(self, agents: int, capacity: int, device: torch.device | str = "cpu"):
        self.values = torch.zeros((agents, -(-capacity // _BLOCK) * _BLOCK), device=device)
        self.largest = torch.ones(agents, device=device)

    def add(self, rows: slice) -> None:
        """New transitions in these rows of each agent (a slice of P); nothing happens where no priorities are kept."""
        if self.values.numel():
            self.values[:, rows] = self.largest[:, None]

    def update(self, row: Int[Tensor, "S B"], priority: Float[Tensor, "S B"]) -> None:
        """Set the priorities [S, B] of the rows [S, B] that an update has just learned from, if any are kept."""
        if self.values.numel() == 0:
            return
        self.values.scatter_(1, row, priority)
        self.largest = torch.maximum(self.largest, priority.amax(1))

    def mend(self, agents: Sequence[int]) -> None:
        """Set priorities of these agents that are not finite, as those of an agent that diverged, to the first ones."""
        for of in (self.values, self.largest):
            of[agents] = torch.where(of[agents].isfinite(), of[agents], 1.0)

    def state_dict(self) -> dict[str, Any]:
        """All priorities and the largest."""
        return {"values": self.values.cpu(), "largest": self.largest.cpu()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.values.copy_(saved["values"])
        self.largest.copy_(saved["largest"])


def _ages(data: Stored | StoredFrames, extent: Extent, window: Window) -> tuple[Tensor | int, Tensor]:
    """The ages [first, end) of rows that may be drawn; 0 is the oldest."""
    first = data.skip if isinstance(data, StoredFrames) else 0
    if window.before:  # a ring that is full has overwritten what was before its oldest rows
        full = extent.size == data.reward.shape[0]
        first = first + torch.where(full, window.before * window.envs, 0)
    return first, extent.size - (window.steps - 1) * window.envs


def _find(mass: Float[Tensor, "*B M"], point: Float[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The entry that covers each point of the cumulated mass (of one for all, or of one for each), and how far inside.

    An entry without mass is never chosen, whatever the rounding and the order in which a device adds up.
    """
    upper = mass.to(torch.float64).cumsum(-1)
    point = torch.minimum(point.to(torch.float64), upper[..., -1] * (1.0 - 1e-9))
    index = ((upper > point[:, None]) & (mass > 0)).to(torch.int64).argmax(-1)
    below = (upper - mass).expand(len(point), -1).gather(1, index[:, None]).squeeze(1)
    return index, (point - below).to(mass.dtype)


def _before_first(ended: Bool[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """1 for the steps up to the first end of an episode, itself included, 0 beyond."""
    earlier = ended.to(torch.int64).cumsum(-1) - ended.to(torch.int64)
    return (earlier == 0).to(torch.int64)


def _observations(
    data: Stored | StoredFrames, row: Int[Tensor, " B"], window: Window, ahead: int
) -> Shaped[Tensor, "B *O"]:
    """The observations of these rows, or with ahead = 1 their successors."""
    if isinstance(data, Stored):
        return seen_in(data.next_obs if ahead else data.obs, row)
    envs, ring = data.frames.shape[:2]
    frames = data.frames.flatten(0, 1)
    follows = ahead * (~data.terminated[row]).to(torch.int64)
    newest, env = data.newest[row] + follows, row % envs
    if window.frame_stack == 0:
        return image_rows(frames, env * ring + newest % ring)
    depth = torch.clamp(data.depth[row] + follows, max=window.frame_stack - 1)
    back = torch.arange(window.frame_stack - 1, -1, -1, device=row.device)
    places = newest[:, None] - torch.minimum(back, depth[:, None])
    return image_rows(frames, env[:, None] * ring + places % ring)
