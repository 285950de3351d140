"""Environments whose values are known, one property each. Registered at import: `probe_envs:ProbeConstant-v0`."""

from __future__ import annotations

import functools
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Step = tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]


class Probe(gym.Env):
    """One observation number, one action in [-1, 1]. `observation` reads the state; t counts steps."""

    observation_space = spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    t = 0
    sign = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        self.sign = float(self.np_random.choice([-1.0, 1.0]))
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def after(self, reward: float, terminated: bool) -> Step:
        self.t += 1
        return self.observation(), reward, terminated, False, {}


class Constant(Probe):
    """Reward 1, then the end: Q = 1."""

    def step(self, action: np.ndarray) -> Step:
        return self.after(1.0, True)


class FromObservation(Probe):
    """Observes -1 or 1, which is the reward, then the end: Q(o) = o."""

    def observation(self) -> np.ndarray:
        return np.full(1, self.sign, np.float32)

    def step(self, action: np.ndarray) -> Step:
        return self.after(self.sign, True)


class TwoSteps(Probe):
    """Observes 0, then 1; reward 0, then 1 at the end: Q(1) = 1, Q(0) = gamma."""

    def observation(self) -> np.ndarray:
        return np.full(1, min(self.t, 1), np.float32)

    def step(self, action: np.ndarray) -> Step:
        return self.after(float(self.t), self.t == 1)


class FromAction(Probe):
    """Observes o = -1 or 1; reward -(a - o / 2)^2, then the end: the best action is o / 2."""

    def observation(self) -> np.ndarray:
        return np.full(1, self.sign, np.float32)

    def step(self, action: np.ndarray) -> Step:
        return self.after(-((float(action[0]) - 0.5 * self.sign) ** 2), True)


class Forever(Probe):
    """Reward 1 for ever, registered with a time limit of 5 steps: Q = 1 / (1 - gamma) all the same."""

    def step(self, action: np.ndarray) -> Step:
        return self.after(1.0, False)


class FiveSteps(Probe):
    """Observes the step number / 5; reward 1 in each of five steps, then the end: Q(t) = sum of gamma^k, k < 5 - t."""

    def observation(self) -> np.ndarray:
        return np.full(1, self.t / 5, np.float32)

    def step(self, action: np.ndarray) -> Step:
        return self.after(1.0, self.t == 4)


class Pictures(Probe):
    """Images whose pixels are 10 times the step number; reward 1 in each of seven steps, then the end."""

    observation_space = spaces.Box(0, 255, (36, 36), np.uint8)

    def observation(self) -> np.ndarray:
        return np.full((36, 36), 10 * self.t, np.uint8)

    def step(self, action: np.ndarray) -> Step:
        return self.after(1.0, self.t == 6)


class SavedPictures(Pictures):
    """The same, and its state can be saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]


class Counting(Probe):
    """Observes the number of steps so far and never ends by itself."""

    def observation(self) -> np.ndarray:
        return np.full(1, self.t, np.float32)

    def step(self, action: np.ndarray) -> Step:
        return self.after(0.0, False)


def discrete(probe: type[Probe], frame_stack: int = 0) -> gym.Env:
    """The probe with two actions, 0 and 1, in place of -1 and 1."""

    class Discrete(probe):
        action_space = spaces.Discrete(2)

        def step(self, action: int) -> Step:
            return super().step(np.full(1, 2.0 * action - 1.0))

    return gym.wrappers.FrameStackObservation(Discrete(), frame_stack) if frame_stack else Discrete()


for _probe, _limit in (
    (Constant, None), (FromObservation, None), (TwoSteps, None), (FromAction, None),
    (Forever, 5), (FiveSteps, None), (Counting, 3), (Pictures, None), (SavedPictures, None),
):  # fmt: skip
    for _kind, _make in (("", _probe), ("Discrete", functools.partial(discrete, _probe))):
        _name = f"Probe{_kind}{_probe.__name__}-v0"
        if _name not in gym.registry:
            gym.register(_name, _make, max_episode_steps=_limit)
