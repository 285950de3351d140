"""Replay: one ring buffer of transitions for every agent of a population, on the training device.

All agents insert in lock-step: a step of S agents x N environments fills N rows in each agent's buffer, so row r is of
environment r % N, and an environment's transitions are N rows apart. Vectors are stored as they come (`Stored`); of
images each frame is stored once, and the frame stacks are put together when they are sampled (`StoredFrames`).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeprl.core import footprint
from deeprl.core.spec import EnvSpec, Transition
from deeprl.errors import DeeprlError
from deeprl.replay.blocks import History

_same = functools.partial(np.array_equal, equal_nan=True)  # images that are not finite are another fault
_WATCHED = 100  # steps with new frames that are compared before the order of the wrappers is trusted
_SPARE = 16  # one spare frame for so many transitions: room for the last frames of episodes cut by a time limit


def on_host(values: Any) -> np.ndarray:
    """An array of NumPy, of whatever device; waits for a GPU."""
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


class Stored(NamedTuple):
    """The arrays of a buffer: [S, capacity, ...] for a population, [capacity, ...] for one agent.

    `next_obs` is stored, not derived from the following row, so that the true final observation of an episode is there.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    next_obs: Tensor


class StoredFrames(NamedTuple):
    """The arrays of a buffer of images: [S, ...] for a population, as follows for one agent.

    frames [N, F, *frame]: a ring of F frames per environment, in the order in which they were seen. The observation of
    row r is the frame number newest[r] (counted from the environment's first; it lies at newest[r] % F) under the
    frames before it, of which depth[r] are of its episode. The successor of a row is the frame that follows, also at a
    time limit, whose last frame is kept; of a terminated row it is never looked at, and stands for it itself.
    skip (0-d): rows, from the oldest, whose frames have been overwritten.
    """

    frames: Tensor
    newest: Tensor
    depth: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    skip: Tensor


class Extent(NamedTuple):
    """Which rows of a ring are filled, the same for all agents: 0-d int64, on the device for compiled samplers.

    size: transitions stored per agent. oldest: the row of the oldest one.
    """

    size: Tensor
    oldest: Tensor


class Replay:
    """Ring buffers of `capacity` transitions per agent.

    data: `Stored`, float32 but for `terminated` and `truncated` (bool) and discrete actions (int64); on the device
    `meta` shapes alone. Raises DeeprlError, before anything is allocated, where the memory for it is not there.
    """

    data: Any
    per_row: tuple[str, ...] = Stored._fields  # the arrays with one entry for each row

    def __init__(self, agents: int, capacity: int, spec: EnvSpec, envs: int = 1, device: torch.device | str = "cpu"):
        self.capacity = capacity // envs * envs  # a step's rows never wrap around
        if self.capacity == 0:
            raise DeeprlError(f"buffer_size {capacity} is smaller than the {envs} environments of one agent")
        self.agents, self.envs, self.spec, self.device = agents, envs, spec, device
        self.extent = Extent(*(torch.zeros((), dtype=torch.int64, device=device) for _ in range(2)))
        self._inserted = 0
        self.history = History(self._read)
        if str(device) != "meta":
            footprint.needs_of(agents, str(device), replay=type(self)(1, capacity, spec, envs, "meta")).require()
        self._allocate()

    @property
    def size(self) -> Tensor:
        """Transitions stored so far per agent, 0-d int64."""
        return self.extent.size

    def _rows(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros((self.agents, self.capacity, *shape), dtype=dtype, device=self.device)

    def _outcomes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        action = self._rows(dtype=torch.int64) if self.spec.discrete else self._rows(self.spec.action_dim)
        return action, self._rows(), self._rows(dtype=torch.bool), self._rows(dtype=torch.bool)

    def _allocate(self) -> None:
        shape, dtype = self.spec.obs_shape, getattr(torch, self.spec.obs_dtype) if self.spec.image else torch.float32
        self.data = Stored(self._rows(*shape, dtype=dtype), *self._outcomes(), self._rows(*shape, dtype=dtype))

    def added(self, steps: int) -> None:
        """Count steps of all environments that were written into `data` from outside (`store`)."""
        self._inserted += steps * self.envs
        self._measure()

    def add(self, transition: Transition) -> slice:
        """Store one step of all environments: fields [S, N, ...]. Returns the rows that it took."""
        return self._insert(transition._asdict())

    def _insert(self, values: dict[str, Any]) -> slice:
        start = self._inserted % self.capacity
        rows = slice(start, start + self.envs)
        for name, stored in self.data._asdict().items():
            if name in values:
                if stored.device.type == "cpu":  # NumPy writes a few numbers in a tenth of torch's time
                    stored.numpy()[:, rows] = values[name]
                else:
                    stored[:, rows].copy_(torch.as_tensor(values[name]))
        self._inserted += self.envs
        self._measure()
        return rows

    @property
    def newest(self) -> int:
        """The first row of the newest step."""
        return (self._inserted - self.envs) % self.capacity

    def cut(self, begins: np.ndarray) -> None:
        """End, as by a time limit, the newest episode of each environment where another begins now: begins [S, N].

        Changes nothing where the end was seen: it is for environments that a resumed run had to start anew.
        """
        if self._inserted > 0:
            rows = slice(self.newest, self.newest + self.envs)
            now = torch.as_tensor(begins, device=self.device)
            self.data.truncated[:, rows] |= now & ~self.data.terminated[:, rows]
            if begins.any():
                self.history.changed(self._inserted // self.envs - 1)

    def _measure(self) -> None:
        self.extent.size.fill_(min(self._inserted, self.capacity))
        self.extent.oldest.fill_(self._inserted % self.capacity if self._inserted > self.capacity else 0)

    def state_dict(self) -> dict[str, Any]:
        """The write position, and the rows as a history in steps of all environments."""
        self.history.last = self._inserted // self.envs
        self.history.first = max(0, self.history.last - self.capacity // self.envs)
        return {"inserted": self._inserted, "rows": self.history}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the capacity must be the same, or larger than all that was stored."""
        self._inserted = saved["inserted"]
        self._measure()
        for first, rows in saved["rows"].parts():
            self._write(first, rows)
        self.history.adopt(saved["rows"])

    def _places(self, first: int, last: int) -> Tensor:
        """Where the transitions of the steps [first, last) lie."""
        return torch.arange(first * self.envs, last * self.envs, device=self.device) % self.capacity

    def _read(self, first: int, last: int) -> dict[str, Any]:
        places = self._places(first, last)
        return {name: getattr(self.data, name)[:, places].cpu() for name in self.per_row}

    def _write(self, first: int, rows: dict[str, Any]) -> None:
        places = self._places(first, first + rows["reward"].shape[1] // self.envs)
        for name in self.per_row:
            getattr(self.data, name)[:, places] = rows[name].to(self.device)


class FrameReplay(Replay):
    """Ring buffers of images that hold each frame once, in the type that the environment gives (uint8 or bool).

    data: `StoredFrames`. Where episodes are cut by time limits more often than every 16th step, the rings of frames run
    out before the rows do, and the oldest rows are not sampled any more.
    """

    _marks = ("_written", "_depth", "_begins", "_first")
    per_row = ("newest", "depth", "action", "reward", "terminated", "truncated")

    def _allocate(self) -> None:
        spec, depth = self.spec, max(self.spec.frame_stack, 1)
        frame = spec.obs_shape[1:] if spec.frame_stack else spec.obs_shape
        rows = self.capacity // self.envs
        self.ring = rows + rows // _SPARE + depth + 2
        dtype = getattr(torch, spec.obs_dtype)
        frames = torch.zeros((self.agents, self.envs, self.ring, *frame), dtype=dtype, device=self.device)
        skip = torch.zeros(self.agents, dtype=torch.int64, device=self.device)
        places = self._rows(dtype=torch.int64), self._rows(dtype=torch.int64)
        self.data = StoredFrames(frames, *places, *self._outcomes(), skip)
        shape = (self.agents, self.envs)
        self._written = np.zeros(shape, np.int64)  # frames of each environment so far
        self._depth = np.zeros(shape, np.int64)
        self._begins = np.ones(shape, bool)
        needs = (self.agents, rows, self.envs)  # the oldest frame that each row needs
        self._needs = np.broadcast_to(np.int64(0), needs) if str(self.device) == "meta" else np.zeros(needs, np.int64)
        self._first = np.zeros(self.agents, np.int64)  # the oldest step whose frames are all there
        self._watched = 0  # steps with new frames that have been compared since the process began

    def add(self, transition: Transition) -> slice:
        """Store one step of all environments, whose observations are whole stacks [S, N, K, *frame] or frames."""
        transition = Transition(*(on_host(x) for x in transition))
        if self.spec.frame_stack > 1:
            self._require_stacks(transition)
        self._push(transition.obs, self._begins)
        self._depth[self._begins] = 0
        newest, depth = self._written - 1, self._depth
        step = self._inserted // self.envs
        self._needs[:, step % self._needs.shape[1]] = newest - depth
        rows = self._insert(transition._asdict() | {"newest": newest, "depth": depth})
        terminated, truncated = np.asarray(transition.terminated), np.asarray(transition.truncated)
        self._push(transition.next_obs, ~terminated)
        self._depth = np.minimum(depth + 1, max(self.spec.frame_stack - 1, 0))
        self._begins = terminated | truncated
        self._skip_overwritten(step + 1)
        return rows

    def _require_stacks(self, transition: Transition) -> None:
        """Raise DeeprlError where sampling would not give back what was seen, at the first steps of any episode."""
        obs, next_obs = np.asarray(transition.obs), np.asarray(transition.next_obs)
        first = obs[self._begins]
        right = _same(first[:, 1:], first[:, :-1])
        if len(first) or self._watched < _WATCHED or (self._depth < self.spec.frame_stack - 1).any():
            going_on = ~np.asarray(transition.terminated)  # the last observation of the others is never looked at
            before, after = obs[going_on], next_obs[going_on]
            right = right and _same(before[:, 1:], after[:, :-1])
            self._watched += not _same(before[:, -1], after[:, -1])
        if not right:
            raise DeeprlError(
                "wrappers: an episode must begin with a stack of copies of one frame, and each step add one, so that"
                " replay gives back what was seen: put FrameStackObservation outermost, with padding_type reset"
            )

    def cut(self, begins: np.ndarray) -> None:
        """As there; the environment's next frame begins a stack."""
        super().cut(begins)
        self._begins = self._begins | begins

    def _push(self, obs: Any, where: np.ndarray) -> None:
        """Append the newest frames of the observations to the rings of the environments in `where`."""
        agent, env = np.nonzero(where)
        if len(agent) == 0:
            return
        frames = np.asarray(obs)[agent, env]
        newest = torch.as_tensor(frames[:, -1] if self.spec.frame_stack else frames).to(self.device)
        places = (agent, env, self._written[agent, env] % self.ring)
        self.data.frames[tuple(torch.from_numpy(i).to(self.device) for i in places)] = newest
        self._written[agent, env] += 1

    def _skip_overwritten(self, steps: int) -> None:
        """Move `skip` beyond the rows of which a frame is gone."""
        held = self._needs.shape[1]
        oldest = max(0, steps - held)
        first = np.maximum(self._first, oldest)
        gone = self._written - self.ring  # frames below this number have been overwritten
        while (lost := (self._needs[np.arange(self.agents), first % held] < gone).any(1) & (first < steps - 1)).any():
            first += lost
        if first.any():
            self.data.skip.copy_(torch.from_numpy((first - oldest) * self.envs))
        self._first = first

    def state_dict(self) -> dict[str, Any]:
        """As there, and where each environment's ring stands."""
        marks = {name: getattr(self, name).copy() for name in self._marks}
        return super().state_dict() | marks | {"skip": self.data.skip.cpu()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the capacity must be the same."""
        for name in self._marks:
            setattr(self, name, torch.as_tensor(saved[name]).numpy().copy())
        super().load_state_dict(saved)
        self.data.skip.copy_(saved["skip"])
        needs = (self.data.newest - self.data.depth).cpu().numpy()
        self._needs[...] = needs.reshape(self._needs.shape)

    def _read(self, first: int, last: int) -> dict[str, Any]:
        """Rows with all frames that they show: those from `begin` to `end` of each environment, one after another."""
        rows = super()._read(first, last)
        newest = rows["newest"][:, -self.envs :].numpy()
        end = np.minimum(newest + 2, self._written)  # with the successor of the last row
        begin = np.maximum(self._needs[:, first % self._needs.shape[1]], self._written - self.ring)
        frames = self.data.frames[self._ring_places(begin, end)].cpu()
        return rows | {"frames": frames, "begin": torch.from_numpy(begin.copy()), "end": torch.from_numpy(end)}

    def _write(self, first: int, rows: dict[str, Any]) -> None:
        super()._write(first, rows)
        places = self._ring_places(rows["begin"].numpy(), rows["end"].numpy())
        self.data.frames[places] = rows["frames"].to(self.device)

    def _ring_places(self, begin: np.ndarray, end: np.ndarray) -> tuple[Tensor, ...]:
        """Indices (agent, environment, place) of the frames numbered begin .. end - 1 [S, N] of each environment."""
        counts = np.maximum(end - begin, 0)
        agent, env = (np.repeat(i.ravel(), counts.ravel()) for i in np.indices(counts.shape))
        number = np.concatenate([np.arange(a, b) for a, b in zip(begin.flat, end.flat, strict=True)])
        return tuple(torch.from_numpy(i).to(self.device) for i in (agent, env, number % self.ring))


def make_replay(
    agents: int,
    capacity: int,
    spec: EnvSpec,
    envs: int = 1,
    device: torch.device | str = "cpu",
    whole: bool = False,
) -> Replay:
    """The buffer for a kind of observation: images frame by frame, vectors as they are.

    whole: images as they are as well, which takes twice the memory, and of stacks of K frames 2 K times as much, but is
    written without the host's help.
    """
    kind = FrameReplay if spec.image and not whole else Replay
    return kind(agents, capacity, spec, envs, device)


def extent_of(inserted: Tensor, capacity: int) -> Extent:
    """Which rows of a ring are filled after so many transitions of one agent (0-d int64), on their device."""
    oldest = torch.where(inserted > capacity, inserted % capacity, 0)
    return Extent(inserted.clamp(max=capacity), oldest)


def store(data: Stored, first: Tensor, transition: Transition) -> Tensor:
    """Write a step of one agent's N environments into its rows from `first` on (0-d int64). Returns the rows [N]."""
    rows = first + torch.arange(len(transition.reward), device=first.device)
    for name, column in data._asdict().items():
        column[rows] = getattr(transition, name).to(column.dtype)
    return rows
