"""An environment that keeps Gymnasium's rules, or is refused in one line that tells which rule it breaks.

Below everything that reads what an environment gives: training (`restorable`), evaluation, recorded datasets.

This module does not import torch: with the backend `async` every environment loads it in a process of its own.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from deeprl.envs import blame
from deeprl.envs.atari import OWN_INFO, announce_reset
from deeprl.errors import DeeprlError, one_line

_RULES = {
    "reset": "reset(*, seed=None, options=None) must return an observation and a dict",
    "step": "step(action) must return five: observation, reward, terminated, truncated and a dict",
}


class Checked(gym.Wrapper):
    """An environment whose steps are what its observation space and Gymnasium's rules promise.

    Observations have the shape of the space. They keep their type where float32 can hold it; for a space of integers or
    booleans they are cast to its type if that changes no value. Rewards are floats; single numbers in arrays, as peers
    take them, become floats. `terminated` and `truncated` are bools. A step that ends an episode gives a copy of its
    observation: a reset may write into the array that an environment fills for all time.

    Of a game of several lives it tells, whatever wrappers stand between, which resets are to begin it anew.

    info: what deeprl's own wrappers tell (`atari.OWN_INFO`) of a step that ends an episode, else empty. Nobody reads
    anything else, and a vector environment would fail on entries whose lengths differ, or take them for its own.

    Raises DeeprlError that names the environment for all that is none of this.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.observation_space
        self._shape, self._kept = space.shape, space.dtype  # what needs no look
        self._floats = space.dtype is not None and space.dtype.kind == "f"
        self._cut = False  # whether the last step was truncated

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        announce_reset(self.env, seed is not None or self._cut)
        self._cut = False
        try:
            given = self.env.reset(seed=seed, options=options)
        except Exception as error:
            unknown = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
            if _of_gymnasium(error) or (unknown and ("'seed'" in str(error) or "'options'" in str(error))):
                raise self._refusal(f"{one_line(error)}; {_RULES['reset']}") from error
            raise
        if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], dict):
            raise self._refusal(f"reset gives {_told(given)}; {_RULES['reset']}")
        return self._observation(given[0], "reset"), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            given = self.env.step(action)
        except Exception as error:
            if _of_gymnasium(error):
                raise self._refusal(f"{one_line(error)}; {_RULES['step']}") from error
            raise
        usual = type(given) is tuple and len(given) == 5 and type(given[4]) is dict  # the quick way to tell
        if not usual and not (isinstance(given, tuple | list) and len(given) == 5 and isinstance(given[4], dict)):
            raise self._refusal(f"step gives {_told(given)}; {_RULES['step']}")
        obs, reward, terminated, truncated, info = given
        if type(obs) is not np.ndarray or obs.dtype is not self._kept or obs.shape != self._shape:
            obs = self._observation(obs, "step")
        if not isinstance(reward, float):
            reward = float(self._number(reward, "reward", "a number"))
        if type(terminated) is not bool:
            terminated = bool(self._number(terminated, "terminated", "a bool"))
        if type(truncated) is not bool:
            truncated = bool(self._number(truncated, "truncated", "a bool"))
        if not (terminated or truncated):
            return obs, reward, terminated, truncated, {}
        self._cut = truncated
        return np.array(obs), reward, terminated, truncated, {k: info[k] for k in OWN_INFO if k in info}

    def _observation(self, given: Any, where: str) -> np.ndarray:
        """The observation as an array that fits into the space. Raises DeeprlError if it does not."""
        space, obs = self.env.observation_space, _array(given)
        if obs.dtype.kind in "fiub" and obs.shape == self._shape:
            if self._floats:
                self._kept = obs.dtype  # such as float64 for a space of float32
                return obs
            with np.errstate(invalid="ignore"):  # NaN is no integer, which shows below
                cast = obs.astype(space.dtype, copy=False)
            if cast is obs or np.array_equal(cast, obs):
                return cast
            told = f"{obs[cast != obs][0]!s} in {_told(obs)}"
        else:
            told = _told(given)
        expected = f"its space promises an array of shape {self._shape} of {space.dtype}"
        raise self._refusal(f"{where} gives {told} as observation; {expected}")

    def _number(self, given: Any, name: str, expected: str) -> Any:
        """A single number, also out of an array. Raises DeeprlError for anything else."""
        if isinstance(given, int | float | np.bool_ | np.integer | np.floating):
            return given
        value = _array(given)
        if value.size != 1 or value.dtype.kind not in "fiub":
            raise self._refusal(f"step gives {_told(given)} as {name}; expected {expected}")
        return value.reshape(())[()]

    def _refusal(self, what: str) -> DeeprlError:
        return DeeprlError(f"{env_name(self.env)}: {what}")


def env_name(env: gym.Env) -> str:
    """The id of an environment, or the name of its class where it was made without one."""
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def _array(value: Any) -> np.ndarray:
    """A value as an array, of type object where it is none: lists of different lengths, tensors of another device."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return np.asarray(None)


def _of_gymnasium(error: Exception) -> bool:
    """Whether Gymnasium's wrappers or checks raised an error, since an environment gave something else than they know.

    What an environment raises itself is its own affair, and keeps its traceback.
    """
    return blame.place(error)[0].startswith(
        ("gymnasium.core", "gymnasium.wrappers.", "gymnasium.utils.passive_env_checker")
    )


def _told(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} of {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(part).__name__ for part in value[:6])})"
    return repr(value)[:60] if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"
