"""Recording: episodes of policies, played in several environments together, until a number of transitions is complete.

Actions are clipped to the bounds of the environment before they act and are recorded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from deeprl.envs.checked import Checked
from deeprl.envs.make import MakeEnv
from deeprl.envs.spaces import env_spec
from deeprl.errors import DeeprlError
from deeprl.make_data.writers import RecordedEpisode

WIDTH = 10  # environments stepped together


class Seats(NamedTuple):
    """Which of the environments are acted in, [B], and in which of them an episode begins, [B] bool."""

    number: np.ndarray
    is_first: np.ndarray


# (obs float32 [B, O], a generator to draw noise from, `Seats`) -> actions [B, A] in the environment's units
Actor = Callable[[np.ndarray, np.random.Generator, Seats], np.ndarray]


class Source(NamedTuple):
    """A policy to record, by a name."""

    name: str
    act: Actor


class Share(NamedTuple):
    """A policy and how much of a dataset it makes, relative to the other shares."""

    source: Source
    weight: float = 1.0


class _Tape:
    """An episode while it is played."""

    def __init__(self, env: gym.Env, seed: int, seat: int):
        self.env, self.seed, self.seat = env, seed, seat
        self.obs = [np.array(env.reset(seed=seed)[0], np.float32)]
        self.action: list[np.ndarray] = []
        self.reward: list[float] = []
        self.terminated = self.truncated = False

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated

    def step(self, action: np.ndarray) -> None:
        self.action.append(action.copy())  # before the environment can write into it
        obs, reward, terminated, truncated, _ = self.env.step(action)
        self.obs.append(np.array(obs, np.float32))
        self.reward.append(float(reward))
        self.terminated, self.truncated = bool(terminated), bool(truncated)

    def recorded(self, name: str, steps: int) -> RecordedEpisode:
        """The episode up to its first `steps` steps. Raises DeeprlError for numbers that are not finite."""
        obs, action = np.stack(self.obs[: steps + 1]), np.stack(self.action[:steps])
        reward, whole = np.array(self.reward[:steps], np.float32), len(self) <= steps
        if not all(np.isfinite(a).all() for a in (obs, action, reward)):
            raise DeeprlError(f"{name}: met observations, actions or rewards that are not finite (seed {self.seed})")
        return RecordedEpisode(obs, action, reward, self.terminated and whole, self.over and whole, self.seed)


class Recorder:
    """Environments of one kind that play episodes of a policy together, so that it acts on a batch."""

    def __init__(self, make: MakeEnv, width: int = WIDTH):
        self.envs: list[gym.Env] = [Checked(make()) for _ in range(width)]
        self.spec = env_spec(self.envs[0])

    def episodes(
        self, source: Source, steps: int, stream: Sequence[int], at_most: int | None = None
    ) -> Iterator[RecordedEpisode]:
        """Episodes of a policy with `steps` transitions in all, the last one cut; or the first `at_most` episodes.

        stream: numbers that all randomness is drawn from. The episodes come in the order in which they began, not in
        which they ended: the first to end would be the short ones.
        """
        starts, noise = (np.random.default_rng([*stream, i]) for i in range(2))
        low, high = self.spec.action_bounds
        tapes: list[_Tape] = []  # those not handed out yet; the episodes over wait for those that began before them
        free, left, begun = list(self.envs), steps, 0
        while left > 0 and (tapes or at_most is None or begun < at_most):
            ahead = sum(map(len, tapes))
            while free and ahead < left and (at_most is None or begun < at_most):
                env = free.pop(0)
                tapes.append(_Tape(env, int(starts.integers(2**31 - 1)), self.envs.index(env)))
                begun += 1
            playing = [tape for tape in tapes if not tape.over]
            seats = Seats(np.array([t.seat for t in playing]), np.array([len(t) == 0 for t in playing]))
            actions = source.act(np.stack([tape.obs[-1] for tape in playing]), noise, seats)
            actions = np.clip(actions, low, high).astype(self.spec.action_dtype, copy=False)
            for tape, action in zip(playing, actions, strict=True):
                tape.step(action)
            free += [tape.env for tape in playing if tape.over]
            while tapes and left > 0 and (tapes[0].over or len(tapes[0]) >= left):
                episode = tapes.pop(0).recorded(source.name, left)
                left -= len(episode.reward)
                yield episode
            # An episode is not needed once those before it fill what is left.
            filled = list(itertools.accumulate(map(len, tapes), initial=0))
            needed = [tape for tape, before in zip(tapes, filled, strict=False) if before < left]
            free += [tape.env for tape in tapes[len(needed) :] if not tape.over]
            tapes = needed

    def close(self) -> None:
        for env in self.envs:
            env.close()


def collect(recorder: Recorder, shares: Sequence[Share], steps: int, seed: int) -> Iterator[RecordedEpisode]:
    """Episodes with `steps` transitions in all: those of the first share, then those of the next.

    Raises DeeprlError where a share would have no transition.
    """
    weights = np.array([share.weight for share in shares], np.float64)
    ends = np.floor(steps * (weights.cumsum() / weights.sum()) + 0.5).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    if (counts < 1).any():
        raise DeeprlError(f"steps: {steps} are too few for a mixture of {len(shares)} policies")
    for i, (share, count) in enumerate(zip(shares, counts.tolist(), strict=True)):
        yield from recorder.episodes(share.source, count, (seed, 0, i))
