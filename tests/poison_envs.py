"""Wrappers that spoil one thing in the environments of the agent with seed 1, or of all: `poison_envs:Reward`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from deeprl.envs.vector import env_seeds

VICTIM = 1
_TRAINING = env_seeds(VICTIM, "env", 1)[0]
_EVALUATION = {s for step in range(200) for s in env_seeds(VICTIM, "eval", 2, step)}  # starts of two episodes at a time


class Poison(gym.Wrapper):
    """Counts the steps since it was made; in a training environment `spoil` is asked at each."""

    steps = 0
    victim = False

    def is_victim(self, seed: int) -> bool:
        return seed == _TRAINING

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.victim = self.is_victim(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return (self.spoil(obs, 0.0, reset=True)[0] if self.victim else obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert np.isfinite(action).all()
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.victim:
            obs, reward = self.spoil(obs, float(reward))
        return obs, reward, terminated, truncated, info

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return obs, reward


class Reward(Poison):
    """The reward is NaN from step 40 on."""

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return obs, (float("nan") if self.steps >= 40 else reward)


class All(Reward):
    """The same for every agent, in training and evaluation."""

    def is_victim(self, seed: int) -> bool:
        return True


class Infinite(Poison):
    """One reward, that of step 40, is infinite as float32, in which it is stored."""

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return obs, (1e39 if self.steps == 40 else reward)


class Huge(Poison):
    """Rewards are finite from step 40 on, but their squares overflow."""

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return obs, (1e30 if self.steps >= 40 else reward)


class Observation(Poison):
    """One observation, after step 40, has a NaN."""

    when = 40

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        if self.steps == self.when and not reset:
            obs = obs.copy()
            obs[-1] = np.nan
        return obs, reward


class LastObservation(Observation):
    """The same after step 50, which ends an episode of 25."""

    when = 50


class FirstObservation(Poison):
    """The reset after step 25 gives an infinite observation."""

    when = 25

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return (np.full_like(obs, -np.inf) if reset and self.steps == self.when else obs), reward


class VeryFirstObservation(FirstObservation):
    """The same of the first reset."""

    when = 0


class EvaluationReward(Reward):
    """Rewards of evaluation episodes are NaN."""

    def is_victim(self, seed: int) -> bool:
        return seed in _EVALUATION

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return obs, float("nan")


class EvaluationObservation(EvaluationReward):
    """Observations of evaluation episodes are NaN; the reward 1."""

    def spoil(self, obs: np.ndarray, reward: float, reset: bool = False) -> tuple[np.ndarray, float]:
        return np.full_like(obs, np.nan), 1.0
