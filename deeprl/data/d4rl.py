"""What D4RL's files were recorded in, made from the environments that can be had today.

Gymnasium and Gymnasium-Robotics have the environments of D4RL's MuJoCo and Adroit data. Where they do otherwise than
those that were recorded, wrappers of this module put it right:

- Ant: MuJoCo 2.0 filled in no contact forces (openai/gym#2593), so that the last 84 of 111 observations are 0 in all of
  D4RL's data, and no contact cost was ever paid.
- Pen: an episode ended when the pen was dropped; Gymnasium-Robotics goes on, at a loss in every step.

Not put right: since its version 1.2.1 Gymnasium-Robotics rewards the distance of the hand from the door's handle, the
hammer and the ball, where D4RL took it off. That is less than a point of the normalised score.
"""

from __future__ import annotations

import re
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

_CONTACTS = 84  # 14 bodies, 6 numbers each
_PEN_HEIGHT, _DROPPED = 26, 0.075  # its place in an observation; in metres, as in D4RL


class NoContactForces(gym.ObservationWrapper):
    """The 27 numbers of an Ant without contact forces, followed by 84 zeros."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space: Any = env.observation_space
        low, high = (np.append(bound, np.zeros(_CONTACTS)) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.append(observation, np.zeros(_CONTACTS, observation.dtype))


class DroppedPenEnds(gym.Wrapper):
    """A pen that is dropped ends its episode."""

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or bool(obs[_PEN_HEIGHT] < _DROPPED), truncated, info


# Gym's v0 .. v2 are nearest to Gymnasium's v4.
_NAMES = (
    (
        r"(halfcheetah|hopper|walker2d|ant)[-_](?:random|expert|(?:medium|full)(?:[-_](?:replay|expert))?)-v[012]",
        "{}-v4",
    ),
    (r"(pen|door|hammer|relocate)[-_](?:human|cloned|expert)-v[01]", "gymnasium_robotics:AdroitHand{}-v1"),
)
_TITLES = {"halfcheetah": "HalfCheetah", "walker2d": "Walker2d"}
_OTHERWISE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "Ant-v4": ({}, (f"{__name__}:NoContactForces",)),
    # 100 steps as in D4RL, also in its references; else 200
    "gymnasium_robotics:AdroitHandPen-v1": ({"max_episode_steps": 100}, (f"{__name__}:DroppedPenEnds",)),
}
WRAPPERS = frozenset(wrapper for _, wrappers in _OTHERWISE.values() for wrapper in wrappers)


def recorded_in(stem: str) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Environment, arguments and wrappers of a file of one of D4RL's names, such as `ant_medium_replay-v2`.

    The environment is "" for other names.
    """
    for pattern, title in _NAMES:
        if found := re.fullmatch(pattern, stem):
            env = title.format(_TITLES.get(found[1], found[1].title()))
            kwargs, wrappers = _OTHERWISE.get(env, ({}, ()))
            return env, dict(kwargs), wrappers
    return "", {}, ()
