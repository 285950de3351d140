"""Whether policies are evaluated in what was recorded: a short look at the environment."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np

_ROWS = 1 << 12  # looked at together
_EPISODES, _STEPS, _SECONDS = 10, 30, 1.0  # of the look: that many starts, steps from each, and in all at most so long


def differences(obs: np.ndarray, env: gym.Env, name: str) -> list[str]:
    """A line for each way in which the observations [N, O] are not those of an environment of this name.

    Columns that hold one number in all rows are compared with what the environment shows in a few hundred steps of
    random actions, always the same ones. It is not looked at where there are none. Whatever it raises is left to those
    who need it.
    """
    found, constant = [], constant_columns(obs)
    fixed = _fixed(env.observation_space)
    if len(varying := np.setdiff1d(fixed, constant)):
        found.append(f"observations that vary in the dataset, but are constant in {name}: {numbered(varying)}")
    if len(obs) > 1 and len(constant):
        try:
            seen = _look(env)[:, constant]
        except Exception:  # environments are others' code
            return found
        other = ~np.isclose(seen, obs[0, constant], rtol=1e-5, atol=1e-6).all(0)
        if other.any():
            found.append(
                f"observations that are constant in the dataset, but not in {name} (or another number there), so that"
                f" policies know nothing of them: {numbered(constant[other])}"
            )
    return found


def constant_columns(obs: np.ndarray) -> np.ndarray:
    """The numbers of the columns of [N, O] that hold one number only."""
    columns = np.arange(obs.shape[1])
    for start in range(0, len(obs), _ROWS):
        if len(columns):  # mostly none is left after the first rows
            columns = columns[(obs[start : start + _ROWS, columns] == obs[0, columns]).all(0)]
    return columns


def numbered(columns: np.ndarray) -> str:
    """Numbers of columns, the first twelve of them."""
    return ", ".join(map(str, columns[:12])) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")


def _fixed(space: gym.Space) -> np.ndarray:
    """The numbers of an observation that its space allows one value only."""
    flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    return np.flatnonzero(space.low == space.high) if flat else np.empty(0, np.int64)  # type: ignore[attr-defined]


def _look(env: gym.Env) -> np.ndarray:
    """What an environment shows from some starts, [steps, O] float32."""
    end, rows = time.monotonic() + _SECONDS, []
    env.action_space.seed(0)
    for episode in range(_EPISODES):
        rows.append(np.array(env.reset(seed=episode)[0], np.float32))
        over = False
        for _ in range(_STEPS):
            if over or time.monotonic() > end:
                break
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            rows.append(np.array(obs, np.float32))
            over = bool(terminated or truncated)
        if time.monotonic() > end:
            break
    return np.stack(rows)
