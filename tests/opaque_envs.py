"""Environments whose state nobody can read. Registered at import: `opaque_envs:Hidden-v0` and others.

Workers of the backend `async` import this module, so that it imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


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


for _name, _make in (("Hidden-v0", Hidden), ("HiddenChoice-v0", HiddenChoice), ("Unseeded-v0", Unseeded)):
    if _name not in gym.registry:
        gym.register(_name, _make)
