"""Environments that are not what Gymnasium asks for, or that tell more than it does. Registered at import.

Workers of the backend `async` import this module, so that it imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Reused(gym.Env):
    """Fills the same arrays for all time: the number of the step in `obs` and reward; cut after 7 steps.

    Its info, the same dict again, has names that a vector environment or deeprl could take for its own, and an array
    whose length follows the step.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_repeat = (2, 5)

    def __init__(self) -> None:
        self.obs, self.reward, self.info = np.zeros(1, np.float32), np.zeros(1, np.float32), {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.obs[:] = 0.0
        return self.obs, self._told()

    def _told(self) -> dict[str, Any]:
        own = {"final_obs": np.full(1, -99.0, np.float32), "final_info": 3, "deeprl": 0, "lives": 2, "game": "chess"}
        own |= {"game_over": False, "game_return": -7.0, "game_length": 1000, "episode": {"r": 3.0}}
        self.info |= own | {"seen": np.zeros(int(self.obs[0])), "all": None}
        return self.info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, bool, dict]:
        self.obs += 1.0
        self.reward[:] = self.obs
        action[...] = 9.0
        return self.obs, self.reward, False, bool(self.obs[0] >= 7), self._told()


class Odd(gym.Env):
    """Breaks one rule, from the start or from its `late`-th step on; its episodes end after 10."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gym.spaces.Box(0, 255, (2,), np.uint8)

    def __init__(self, kind: str = "", late: int = 0):
        self.kind, self.late, self.steps = kind, late, 0

    def reset(self, **kwargs: Any) -> Any:
        if self.kind == "no seed" and "seed" in kwargs:
            raise TypeError("reset() got an unexpected keyword argument 'seed'")
        super().reset(seed=kwargs.get("seed"))
        self.t = 0
        given = {"obs alone": self._obs(), "three of reset": (self._obs(), {}, 0), "no info": (self._obs(), None)}
        return (self._obs(), {}) if self.steps < self.late else given.get(self.kind, (self._obs(), {}))

    def _obs(self) -> Any:
        shapes = {"shape": np.zeros((2, 1), np.uint8), "large": np.array([300, 0]), "half": np.array([0.5, 0.0])}
        shapes |= {"text": "none", "ragged": [[1], [2, 3]], "ints": np.array([7, 0]), "list": [7, 0]}
        return np.zeros(2, np.uint8) if self.steps < self.late else shapes.get(self.kind, np.zeros(2, np.uint8))

    def step(self, action: np.ndarray) -> Any:
        self.t, self.steps = self.t + 1, self.steps + 1
        if self.steps == self.late and self.kind == "own error":
            raise KeyError("of its own")
        rewards = {"reward of one": np.full((1,), 2.0), "reward of two": np.zeros(2), "no reward": None}
        reward = 2.0 if self.steps < self.late else rewards.get(self.kind, 2.0)
        ends = {"numpy ends": np.bool_(self.t >= 10), "int ends": int(self.t >= 10), "no end": None}
        result = (self._obs(), reward, ends.get(self.kind, self.t >= 10), False, {})
        return result[:3] + result[4:] if self.kind == "four" and self.steps >= self.late else result


class Doubles(gym.Env):
    """Acts in float64 and fails for actions that are not in its space; rewards are the actions. Cut after 5 steps."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-0.4, 0.4, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        self.t += 1
        return np.zeros(1, np.float32), float(action[0]), False, self.t >= 5, {}


class Growing(Odd):
    """Each one that a process makes observes one number more than the one before."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Growing.made += 1
        self.observation_space = gym.spaces.Box(0, 255, (Growing.made,), np.uint8)

    def _obs(self) -> Any:
        return np.zeros(self.observation_space.shape, np.uint8)


class Bare(gym.Env):
    """Has no spaces."""


gym.register("Reused-v0", entry_point="odd_envs:Reused")
gym.register("Odd-v0", entry_point="odd_envs:Odd", disable_env_checker=True)
gym.register("Growing-v0", entry_point="odd_envs:Growing", disable_env_checker=True)
gym.register("Doubles-v0", entry_point="odd_envs:Doubles")
gym.register("OddChecked-v0", entry_point="odd_envs:Odd")
