"""Environments whose state nobody can read. Registered at import: `opaque_envs:Hidden-v0` and others.

Workers of the backend `async` import this module, so that it imports nothing heavy.
"""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np

from deeprl.envs.atari import CountDecisions, EpisodicLife, GameRecord


class _World:
    """A noisy walk that ends after a random number of steps."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.place = self.rng.normal(size=2)
        self.left = int(self.rng.integers(3, 15))

    def move(self, push: np.ndarray) -> float:
        self.place = 0.9 * self.place + push + 0.1 * self.rng.normal(size=2)
        self.left -= 1
        return -float(np.abs(self.place).sum())


class Hidden(gym.Env):
    """All that it knows is in a closure. Writes into the actions that it is given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([1.0, 3.0], np.float32))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        world = _World(int(self.np_random.integers(2**31)))
        self.world = lambda: world
        return world.place.copy(), {}

    def push(self, action: Any) -> np.ndarray:
        push = np.array(action)
        action[...] = 0.0
        return push

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        world = self.world()
        reward = world.move(self.push(action))
        return world.place.copy(), reward, world.left == 0, False, {}


class HiddenChoice(Hidden):
    """The same with three actions: 0, 1 and 2."""

    action_space = gym.spaces.Discrete(3)

    def push(self, action: Any) -> np.ndarray:
        return np.array([float(action) - 1.0, 0.0])


class Unseeded(Hidden):
    """Its noise comes from a generator that no seed reaches."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        world = _World(int(np.random.default_rng().integers(2**31)))
        self.world = lambda: world
        return world.place.copy(), {}


class Harder(gym.Wrapper):
    """Rewards shrink from one episode to the next; it counts the episodes in a number."""

    episodes = 0

    def reset(self, **kwargs: Any) -> Any:
        self.episodes += 1
        return self.env.reset(**kwargs)

    def level(self) -> int:
        return self.episodes

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward - self.level(), terminated, truncated, info


class SecretlyHarder(Harder):
    """The same; it counts them in a place where nobody can look."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.memory = iter(range(10**9))

    def reset(self, **kwargs: Any) -> Any:
        self.now = next(self.memory)
        return self.env.reset(**kwargs)

    def level(self) -> int:
        return self.now


class Lives(gym.Env):
    """Games of three lives of four steps each, a reward of 1 a step. Observes the number that the seed gave the game,
    the lives left and the steps since the reset."""

    observation_space = gym.spaces.Box(0, np.inf, (3,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def _now(self) -> np.ndarray:
        return np.array([self.number, self.lives, self.t], np.float64)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number, self.lives, self.t = int(self.np_random.integers(10**6)), 3, 0
        return self._now(), {"lives": 3}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.lives = 3 - self.t // 4
        return self._now(), 1.0, self.lives == 0, False, {"lives": self.lives}


class SavedLives(Lives):
    """The same; its state can be read."""

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "lives": self.lives, "t": self.t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({k: int(v) for k, v in state.items()})


def lives(base: type[Lives] = Lives) -> gym.Env:
    """In the layers of an Atari game: a lost life ends an episode, and the game goes on after a no-op."""
    return CountDecisions(EpisodicLife(GameRecord(base())))


class Holder(gym.Wrapper):
    """Does nothing, but holds what cannot be saved."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.own_random = random.Random(0)


class OneSeed(gym.Wrapper):
    """Gives every reset the same seed."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self.env.reset(seed=7, options=options)


class NoSeed(gym.Wrapper):
    """Drops the seeds of resets."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self.env.reset(options=options)


class Silent(gym.Wrapper):
    """Drops all infos."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self.env.reset(seed=seed, options=options)[0], {}

    def step(self, action: Any) -> Any:
        return *self.env.step(action)[:4], {}


class Cut(gym.wrappers.TimeLimit):
    """Cuts games with the step that loses their first life."""

    def __init__(self, env: gym.Env):
        super().__init__(env, 4)


class Secret(gym.Wrapper):
    """Cannot be saved, and goes another way when it is played again: counts its steps where nobody can look."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.steps = iter(range(10**9))

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return obs + 1e-3 * next(self.steps), *rest


_MAKES = {
    "Hidden-v0": Hidden,
    "HiddenChoice-v0": HiddenChoice,
    "Unseeded-v0": Unseeded,
    "Lives-v0": lives,
    "SavedLives-v0": lambda: lives(SavedLives),
}
for _name, _make in _MAKES.items():
    if _name not in gym.registry:
        gym.register(_name, _make)
