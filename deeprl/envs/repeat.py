"""Actions that are held: `--wrappers deeprl.envs.repeat:Repeat4` makes four steps of each, and so on for any number."""

from __future__ import annotations

import functools
import re
from typing import Any, ClassVar

import gymnasium as gym


class RepeatAction(gym.Wrapper):
    """Each step is `times` steps of the environment with one action, or those that are left of the episode.

    The reward is their sum, not discounted; the observation and the info are those of the last one.
    """

    times: ClassVar[int] = 1

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.deeprl_action_repeat = self.times  # results count simulator steps (`envs.units`)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


@functools.cache
def _repeating(times: int) -> type[RepeatAction]:
    return type(f"Repeat{times}", (RepeatAction,), {"times": times, "__module__": __name__})


def __getattr__(name: str) -> type[RepeatAction]:
    found = re.fullmatch(r"Repeat([1-9]\d*)", name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; Repeat4 holds an action for 4 steps")
    return _repeating(int(found[1]))
