"""The outermost layer of a training environment, through which a checkpoint saves it and a resumed run restores it.

Three kinds, found out once per run with an environment made for it (`how_restorable`):

- `captured`: `envs.state` knows all that the environment remembers (MuJoCo, classic control, MinAtar, the Atari games
  of `make_env`, environments with a `state_dict`). Restored exactly, at the cost of copying the state.
- `replayed`: any other environment that is deterministic (Box2D, environments of your own). Every episode begins with
  `reset(seed=...)`, its seed a function of the environment's own seed and the number of the episode, and its actions
  are kept. Here an episode is a whole game: the resets after lost lives (see `atari.py`) are part of it, without seeds.
  To restore it, the episode is played again; a digest of every observation, reward and end tells whether it
  went the same way. That costs 3 to 4 microseconds per step, the memory of one episode's actions (A numbers per step),
  and on resume the time of the steps since the episode began: an environment without ends is played again from its
  very beginning. What wrappers remember from earlier episodes (running statistics, counters, generators) is saved where
  it is made of numbers, arrays, lists, queues and generators. Wrappers see no reset of a game without a seed.
- `no`: EnvPool, and environments that go another way when they are played again: they draw from a generator that no
  seed reaches, read a clock, or remember earlier episodes in themselves. A resumed run begins a new episode in each of
  them, from a seed that the run has not used before, and says so; all else of the run is still restored exactly.

Not promised: that a difference which shows in no observation, reward or end up to the checkpoint is noticed, such as a
hidden difficulty that grows with the episodes; and results across versions of an environment or kinds of machine.

This module does not import torch: with the backend `async` every environment loads it in a process of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from deeprl.envs import state as env_state
from deeprl.envs.atari import game_goes_on
from deeprl.envs.checked import Checked
from deeprl.envs.make import MakeEnv

Restorable = Literal["captured", "replayed", "no"]

_TRIAL = 50  # steps played twice to see whether an environment is deterministic


class Captured(Checked):
    """An environment that `envs.state` can capture.

    to_restore: for `restore`, a state and the seed of a new episode where that cannot be restored. An attribute,
    because a vector environment can set one to a value of its own in each environment, but calls all alike.
    """

    to_restore: tuple[dict[str, Any] | None, int] = (None, 0)

    def capture(self) -> dict[str, Any] | None:
        """The state of the environment, of numbers, strings, lists and arrays; None where there is no way to it."""
        return env_state.capture(self.env)

    def restore(self) -> np.ndarray | None:
        """Go on from `to_restore`, after a reset. Returns None, or the first observation of a new episode."""
        (state, again), self.to_restore = self.to_restore, (None, 0)
        if state is not None and self._go_on(state):
            return None
        return self.reset(seed=again)[0]

    def _go_on(self, state: dict[str, Any]) -> bool:
        if "inner" not in state:  # saved when this environment could not be captured
            return False
        env_state.restore(self.env, state)
        return True


class Replayed(Captured):
    """An environment whose episodes follow from (seed, number of the episode, actions), so that one can be repeated."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._seed = self._episode = 0
        self._lost_life = False  # by the last step, in a game that goes on

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """With a seed: episode 0 of it. Without: the next episode, begun with a seed of its own; or the next life."""
        if seed is None and self._lost_life:
            return self._next_life(options)
        self._seed, self._episode = (self._seed, self._episode + 1) if seed is None else (int(seed), 0)
        return self._begin(options)

    def _begin(self, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._memory = env_state.wrapper_memory(self.env)
        self._options, self._actions, self._form = options, bytearray(), np.zeros(())
        self._lost_life, self._lives = False, 0
        obs, info = super().reset(seed=episode_seed(self._seed, self._episode), options=options)
        self._digest = hashlib.blake2b(np.asarray(obs).tobytes(), digest_size=16)
        return obs, info

    def _next_life(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self._options = self._options or options
        self._lost_life, self._lives = False, self._lives + 1
        obs, info = super().reset(options=options)
        self._digest.update(np.asarray(obs).tobytes())
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._form = np.array(action)
        self._actions += self._form.tobytes()  # before the environment can write into it
        obs, reward, terminated, truncated, info = super().step(action)
        for part in (obs, np.float64(reward), np.array([terminated, truncated], bool)):
            self._digest.update(np.asarray(part).tobytes())
        self._lost_life = bool(terminated and not truncated) and game_goes_on(self.env)
        return obs, reward, terminated, truncated, info

    def capture(self) -> dict[str, Any] | None:
        if self._options:  # nobody can tell what they hold
            return None
        actions = np.frombuffer(self._actions.copy(), self._form.dtype).reshape(-1, *self._form.shape)
        return {
            "seed": self._seed,
            "episode": self._episode,
            "memory": self._memory,
            "actions": actions,
            "lives": self._lives,
            "digest": self._digest.hexdigest(),
        }

    def _go_on(self, state: dict[str, Any]) -> bool:
        if "actions" not in state:  # saved when this environment could be captured
            return False
        state = env_state.arrays(state)
        env_state.restore_wrappers(self.env, state["memory"])
        self._seed, self._episode = state["seed"], state["episode"]
        self._begin()
        ended = False
        for action in state["actions"]:
            if ended:  # too early: it is not the same episode
                return False
            _, _, terminated, truncated, _ = self.step(action)
            ended = terminated or truncated
            # Absent in states of versions in which each life was an episode.
            if self._lost_life and self._lives < state.get("lives", 0):
                self.reset()
                ended = False
        return self._digest.hexdigest() == state["digest"]


def episode_seed(seed: int, episode: int) -> int:
    """The seed of an episode: `seed` itself for the first, numbers drawn from both for those after it."""
    return seed if episode == 0 else int(np.random.SeedSequence([seed, episode]).generate_state(1)[0] >> 1)


def how_restorable(env: gym.Env) -> Restorable:
    """Find out how environments such as this one, which is used up by it, can be restored.

    Raises DeeprlError if its first steps break the rules that `checked` tells.
    """
    env.action_space.seed(0)
    layer = Captured(env)
    layer.reset(seed=0)
    layer.step(env.action_space.sample())
    if layer.capture() is not None:
        return "captured"
    trial = _tried(env)
    trial.to_restore = (trial.capture(), 1)
    return "replayed" if trial.restore() is None else "no"


def forgets(env: gym.Env) -> bool:
    """Whether an episode of this environment, which is used up by it, goes the same way whatever it played before.

    Those in which agents are evaluated may be kept then. Wrappers are left as the first episode leaves them. Raises
    DeeprlError as `how_restorable` does.
    """
    env.action_space.seed(0)
    trial = _tried(env)
    played: dict[str, Any] = trial.capture() or {}
    trial.to_restore = (played | {"memory": [None for _ in played["memory"]]}, 1)
    return trial.restore() is None


def _tried(env: gym.Env) -> Replayed:
    """The first steps of an episode."""
    trial = Replayed(env)
    trial.reset(seed=0)
    for _ in range(_TRIAL):
        _, _, terminated, truncated, _ = trial.step(env.action_space.sample())
        if terminated or truncated:
            break
    return trial


@dataclass(frozen=True)
class Layered:
    """Makes an environment with its outermost layer; picklable."""

    make: MakeEnv
    kind: Restorable

    def __call__(self) -> gym.Env:
        return {"captured": Captured, "replayed": Replayed, "no": Checked}[self.kind](self.make())
