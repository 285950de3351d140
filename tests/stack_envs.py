"""Images whose pixels number the frames, and wrappers that change the frame stack in ways of their own.

Registered at import: `stack_envs:Numbered-v0`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Numbered(gym.Env):
    """Every pixel shows how many frames there have been since the reset; an episode has nine."""

    observation_space = gym.spaces.Box(0, 255, (2, 2), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def _frame(self) -> np.ndarray:
        return np.full((2, 2), self.t, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self._frame(), 1.0, self.t == 9, False, {}


class Stack(gym.wrappers.FrameStackObservation):
    """Of three frames."""

    def __init__(self, env: gym.Env):
        super().__init__(env, 3)


class Skip(gym.wrappers.MaxAndSkipObservation):
    """Repeats each action once."""

    def __init__(self, env: gym.Env):
        super().__init__(env, 2)


class Jumps(gym.Wrapper):
    """Repeats the action of the second step of every second episode."""

    episodes = steps = 0

    def reset(self, **kwargs: Any) -> Any:
        self.episodes, self.steps = self.episodes + 1, 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 2 and self.episodes % 2 == 0:
            self.env.step(action)
        return self.env.step(action)


class Backwards(gym.Wrapper):
    """Turns the stack round."""

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        return obs[::-1], info

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return obs[::-1], *rest


if "Numbered-v0" not in gym.registry:
    gym.register("Numbered-v0", Numbered)
