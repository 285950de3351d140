"""MuJoCo tasks of Gymnasium in threads of one process: the same numbers, bit for bit, as from one after another.

Each environment is Gymnasium's own, which begins its episodes and is saved and restored as elsewhere. In between,
threads step the physics of all of them, and rewards and observations are computed for all together (`rules`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deeprl.core.spec import EnvSpec
from deeprl.envs import restorable
from deeprl.envs.make import EnvFactory, refuse_wrappers
from deeprl.envs.mujoco.rules import known, rules_of, time_limit
from deeprl.envs.spaces import env_spec


class ThreadedVector:
    """One environment per seed, with the face of a Gymnasium vector environment that resets in the step that ends.

    `env_spec` says what one of them is like. Raises DeeprlError for tasks without rules, and for wrappers.
    """

    def __init__(self, make: EnvFactory, n: int):
        import mujoco  # an extra of Gymnasium

        name = known(make.env, "threads")
        refuse_wrappers("threads", make.wrappers, "steps of one environment")
        layered = restorable.Layered(make, "captured")
        self._envs: list[Any] = [layered() for _ in range(n)]
        self.env_spec: EnvSpec = env_spec(self._envs[0])
        bases: list[Any] = [env.unwrapped for env in self._envs]
        self._limits = [time_limit(env) for env in self._envs]
        self._most = self._limits[0]._max_episode_steps if self._limits[0] is not None else 0
        self._rules, self._mj_step = rules_of(self._envs[0], name), mujoco.mj_step
        self._physics = [(base.model, base.data, base.data.ctrl) for base in bases]
        self._frames, model = bases[0].frame_skip, bases[0].model
        self._qpos, self._qvel = np.zeros((n, model.nq)), np.zeros((n, model.nv))
        self._states = [base.data.qpos for base in bases], [base.data.qvel for base in bases]
        self._elapsed = np.zeros(n, np.int64)
        workers = min(n, os.cpu_count() or 1)
        edges = [n * i // workers for i in range(workers + 1)]
        self._parts = [range(*edge) for edge in itertools.pairwise(edges)]
        self._pool = ThreadPoolExecutor(max(1, workers - 1), "deeprl-physics")

    def reset(self, seed: Sequence[int]) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode everywhere."""
        first = [env.reset(seed=one)[0] for env, one in zip(self._envs, seed, strict=True)]
        self._read()
        return np.stack(first), {}

    def _read(self) -> None:
        """What the environments say of where they are."""
        self._look()
        if self._most:
            self._elapsed[:] = [limit._elapsed_steps for limit in self._limits]

    def _look(self) -> None:
        for states, into in zip(self._states, (self._qpos, self._qvel), strict=True):
            np.concatenate(states, out=into.reshape(-1))

    def _simulate(self, part: range, action: np.ndarray) -> None:
        step, frames = self._mj_step, self._frames
        for i in part:
            model, data, ctrl = self._physics[i]
            ctrl[:] = action[i]
            step(model, data, frames)  # other threads go on in it

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment; those that end come back reset.

        info: where any has ended, `final_obs`, their last observations, None for the others.
        """
        x = self._qpos[:, 0].copy()
        others = [self._pool.submit(self._simulate, part, action) for part in self._parts[1:]]
        self._simulate(self._parts[0], action)
        for other in others:
            other.result()
        self._look()
        self._elapsed += 1
        obs = np.empty((len(x), *self.env_spec.obs_shape))
        self._rules.observe(self._qpos, self._qvel, obs)
        reward, terminated = self._rules.judge(x, self._qpos, self._qvel, action)
        truncated = self._elapsed >= self._most if self._most else np.zeros_like(terminated)
        ended = np.flatnonzero(terminated | truncated)
        if len(ended) == 0:
            return obs, reward, terminated, truncated, {}
        final = np.full(len(x), None, object)
        for i in ended:
            final[i] = obs[i].copy()
            obs[i] = self._envs[i].reset()[0]
        self._look()
        self._elapsed[ended] = 0
        return obs, reward, terminated, truncated, {"final_obs": final}

    def call(self, name: str) -> tuple[Any, ...]:
        """What a method of each environment returns: `capture` or `restore`."""
        for limit, elapsed in zip(self._limits, self._elapsed, strict=True):
            if limit is not None:
                limit._elapsed_steps = int(elapsed)
        found = tuple(getattr(env, name)() for env in self._envs)
        self._read()
        return found

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Set an attribute of each environment."""
        for env, value in zip(self._envs, values, strict=True):
            setattr(env, name, value)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
        for env in self._envs:
            env.close()
