"""Environments that change the working directory to `away`, when they are made or at every step."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.pendulum import PendulumEnv


class Wandering(PendulumEnv):
    """when: `made` or `step`."""

    def __init__(self, away: str, when: str = "made", **other: Any):
        super().__init__(**other)
        self.away, self.when = away, when
        self.move("made")

    def move(self, now: str) -> None:
        if now == self.when:
            os.makedirs(self.away, exist_ok=True)
            os.chdir(self.away)

    def step(self, action: Any) -> Any:
        self.move("step")
        return super().step(action)


gym.register("Wandering-v0", entry_point="wandering_envs:Wandering", max_episode_steps=25)
