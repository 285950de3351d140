"""An environment whose process crashes after some steps: `crashing_envs:Crashing-v0`."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv


class Crashing(PendulumEnv):
    """Pendulum; an error of a program of its own at the first step."""

    def step(self, action):
        raise ZeroDivisionError("the pendulum broke")


gym.register("Crashing-v0", entry_point=Crashing, max_episode_steps=25)
