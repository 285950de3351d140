"""EnvPool behind the face of a Gymnasium vector environment that resets in the step that ends an episode.

EnvPool plays many environments in C++ threads and resets one in the step after that which ended it, throwing the action
away. Here that step is taken at once, for just those that have ended, and never handed out as a transition.

Atari games take the `env_kwargs` of `atari.AtariSettings` and report the end, return and length of a game
(`atari.OWN_INFO`) in the info of a step that ends something, as with `make_env`. What EnvPool does otherwise and no
option of it can change:

- after a lost life it plays no-ops again, as many as after a reset of the game (`make_env`: one step of no-op);
- FIRE on reset lasts one frame (`make_env`: one step of `frame_skip` frames) and counts as one of the no-op frames;
- what frames inside a reset earn is missing from the return, and they do not count for the limit of frames;
- the last observation of a game that ends or is cut within an action may show older frames (`make_env`: the last two);
- an action is held by ALE's own sticky actions (`make_env`: by a wrapper, with the same rule).

Where a lost life ends an episode EnvPool goes on stacking across it; here the stack begins anew with copies of the
first frame, as everywhere in this library. The state of EnvPool cannot be saved: a resumed run begins new episodes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np

from deeprl.envs.atari import GAME_LENGTH, GAME_OVER, GAME_RETURN, AtariSettings
from deeprl.envs.make import EnvFactory
from deeprl.envs.spaces import env_spec
from deeprl.errors import DeeprlError, nearest

# Games with more than the 210 rows of the screen that EnvPool knows. It shows the upper part of them only, and agents
# are evaluated in environments of `make_env`, which show all (benchmarks/atari.py compares the frames).
CROPPED = frozenset(
    "Adventure AirRaid Carnival JourneyEscape KeystoneKapers KingKong Klax LaserGates MrDo Pacman Pooyan SirLancelot "
    "SpaceWar".split()
)
_NO_LIMIT = 10**9


class EnvPoolVector:
    """One environment per seed. `env_spec` says what one of them is like."""

    def __init__(self, make: EnvFactory, seeds: Sequence[int]):
        if make.wrappers:
            raise DeeprlError(f"env_backend: envpool takes no wrappers ({', '.join(make.wrappers)}); use sync or async")
        self._name, self._seeds = make.env, list(seeds)
        self._atari = make.env.startswith("ALE/")
        self._task, self._options = _task(make.env, make.env_kwargs) if self._atari else (make.env, make.env_kwargs)
        self._stack = self._options["stack_num"] if self._atari else 0
        self._pool, self._fresh = self._made(self._seeds), True
        face: Any = gym.Env()
        face.spec, face.action_space = SimpleNamespace(id=make.env), self._pool.action_space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds that float32 rounds
            face.observation_space = self._pool.observation_space
        self.env_spec = replace(env_spec(face), frame_stack=self._stack)

    def _made(self, seeds: list[int]) -> Any:
        try:
            import envpool
        except ImportError as error:
            raise DeeprlError("env_backend: install envpool with: pip install 'deeprl[envpool]'") from error
        known = envpool.list_all_envs()
        if self._task not in known:
            raise DeeprlError(f"EnvPool has no environment {self._name!r}{nearest(self._task, known)}")
        threads = min(len(seeds), os.cpu_count() or 1)
        try:
            return envpool.make(
                self._task, "gymnasium", num_envs=len(seeds), seed=seeds, num_threads=threads, **self._options
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DeeprlError(f"EnvPool's {self._name} with arguments {dict(self._options)}: {reason}") from error

    def reset(self, seed: Sequence[int]) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode everywhere. EnvPool cannot be seeded again: other seeds make it anew."""
        if not self._fresh or list(seed) != self._seeds:
            self._pool.close()
            self._seeds = list(seed)
            self._pool = self._made(self._seeds)
        self._fresh = False
        self._age = np.zeros(len(seed), np.int64)  # steps since the last reset
        self._returns, self._lengths = np.zeros(len(seed)), np.zeros(len(seed), np.int64)
        obs, _ = self._pool.reset()
        return obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment; those that end come back reset.

        info: where any has ended, `final_obs` (their last observations, None for the others) and, of Atari games,
        `final_info`.
        """
        obs, reward, terminated, truncated, info = self._pool.step(action)
        self._age += 1
        self._begin_stacks(obs)
        if self._atari:
            over = info["terminated"].astype(bool)
            terminated = terminated | over  # EnvPool leaves it out where the limit of frames falls on the same step
            self._returns += reward
            self._lengths += 1
        ended = np.flatnonzero(terminated | truncated)
        if len(ended) == 0:
            return obs, reward, terminated, truncated, {}
        final: dict[str, Any] = {"final_obs": np.full(len(obs), None, object)}
        for i in ended:
            final["final_obs"][i] = obs[i].copy()
        # A step of what has ended is a reset, whatever the action. EnvPool's `reset` would throw away the lives left.
        first, _, _, _, begun = self._pool.step(action[ended], ended)
        ids = begun["env_id"]
        obs[ids] = first
        self._age[ids] = 0
        self._begin_stacks(obs)
        if self._atari:
            final["final_info"] = {GAME_OVER: over, GAME_RETURN: self._returns, GAME_LENGTH: self._lengths}
            # The no-ops after a lost life may have ended the game: then there are more lives than before.
            new = over | truncated
            new[ids] |= begun["lives"] > info["lives"][ids]
            self._returns, self._lengths = np.where(new, 0.0, self._returns), np.where(new, 0, self._lengths)
        return obs, reward, terminated, truncated, final

    def _begin_stacks(self, obs: np.ndarray) -> None:
        """Put copies of an episode's first frame where its stack holds older ones."""
        for i in np.flatnonzero(self._age < self._stack - 1):
            oldest = self._stack - 1 - self._age[i]
            obs[i, :oldest] = obs[i, oldest]

    def close(self) -> None:
        """End EnvPool's threads."""
        self._pool.close()


def _task(env: str, env_kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """EnvPool's name and options for an Atari game."""
    s, others = AtariSettings.split(env, env_kwargs)
    if s.noop_max < 1:
        raise DeeprlError(f"{env}: EnvPool needs a noop_max of at least 1; use sync or async without no-ops")
    task = env.removeprefix("ALE/")
    if task.partition("-")[0] in CROPPED:
        raise DeeprlError(f"{env}: EnvPool shows only a part of this game's screen; use sync or async")
    return task, {
        "repeat_action_probability": s.repeat_action_probability,
        "full_action_space": s.full_action_space,
        "noop_max": s.noop_max,
        "frame_skip": s.frame_skip,
        "img_height": s.screen_size,
        "img_width": s.screen_size,
        "stack_num": s.stack,
        "episodic_life": s.terminal_on_life_loss,
        "use_fire_reset": s.fire_reset,
        "reward_clip": False,
        "max_episode_steps": s.max_num_frames_per_episode // s.frame_skip or _NO_LIMIT,
        **others,
    }
