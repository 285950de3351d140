"""Environments of a population: S agents x N environments each, behind one Gymnasium vector environment.

Continuous actions are in [-1, 1], discrete ones count from 0; `spaces.to_env_action` puts them in the environment's
terms. Environments reset in the step that ends an episode (`SAME_STEP`), and `Transition.next_obs` is still the true
final observation. Environment e of the agent with seed s is seeded from (s, e) alone. How exactly a resumed run goes on
in them: `restorable`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from deeprl.core import rng
from deeprl.core.spec import EnvSpec, Transition
from deeprl.envs import restorable
from deeprl.envs import state as env_state
from deeprl.envs.atari import GAME_LENGTH, GAME_OVER, GAME_RETURN
from deeprl.envs.checked import env_name
from deeprl.envs.make import EnvFactory, MakeEnv
from deeprl.envs.restorable import Restorable
from deeprl.envs.spaces import counted_repeat, env_spec, to_env_action
from deeprl.envs.workers import async_vector
from deeprl.errors import DeeprlError

EnvBackend = Literal["sync", "async", "envpool", "threads"]


class Episode(NamedTuple):
    """A finished episode: the member and its environment, the undiscounted return, the length in steps."""

    member: int
    env: int
    ret: float
    length: int


def env_seeds(seed: int, stream: str, n: int, counter: int = 0) -> list[int]:
    """Reset seeds of an agent's environments 0 .. n-1, drawn from the agent's own stream (`env` or `eval`)."""
    # The first n of 2 n draws come from a lane of the generator each, so that seed e does not depend on n.
    return [int(s) for s in rng.randint(rng.key(seed, stream, counter), (2 * n,), 2**31 - 1)[:n]]


class PopulationEnvs:
    """S x N environments stepped together.

    `obs` [S, N, *O] of `spec.obs_dtype` is what the agents see now; `is_first` [S, N] tells which of them begin an
    episode. Running returns and lengths are kept per environment; `pop_episodes` hands out the episodes finished since
    its last call, in order; `pop_faults` tells which agents met numbers that are not finite. Where our
    own wrappers of Atari games report the end of a game, episodes are whole games with their returns (see `atari.py`),
    however often a lost life has ended an episode for the learner. `restorable` tells whether and how
    `load_state_dict` will restore them: "captured", "replayed" or "no".
    """

    def __init__(self, make: MakeEnv, seeds: Sequence[int], envs_per_agent: int = 1, backend: EnvBackend = "sync"):
        self.agents, self.width = len(seeds), envs_per_agent
        self._seeds, self._steps = list(seeds), 0
        starts = self._starts()
        self.vector, self.spec, self.restorable = _vector(make, starts, backend)
        self._returns = np.zeros((self.agents, self.width))
        self._lengths = np.zeros((self.agents, self.width), np.int64)
        self._episodes: list[Episode] = []
        self._faults: dict[int, str] = {}
        self.obs = self._shaped(self.vector.reset(seed=starts)[0])
        self.is_first = np.ones((self.agents, self.width), bool)

    def _starts(self) -> list[int]:
        """Reset seeds of all environments; those after some steps are others than at the start."""
        return [s for seed in self._seeds for s in env_seeds(seed, "env", self.width, self._steps)]

    def _shaped(self, obs: np.ndarray) -> np.ndarray:
        return obs.reshape(self.agents, self.width, *self.spec.obs_shape).astype(self.spec.obs_dtype)

    def step(self, action: np.ndarray) -> Transition:
        """One step of every environment. action: float [S, N, A] in [-1, 1], or int [S, N]. Moves `obs` on."""
        flat = to_env_action(self.spec, action.reshape(self.agents * self.width, *action.shape[2:]))
        obs, reward, terminated, truncated, info = self.vector.step(flat)
        shape = (self.agents, self.width)
        reward, terminated = reward.reshape(shape), terminated.reshape(shape)
        truncated = truncated.reshape(shape)
        before, self.obs = self.obs, self._shaped(obs)
        began, next_obs = self.is_first, self.obs
        ended = terminated | truncated
        any_ended = bool(ended.any())
        if any_ended:
            next_obs = next_obs.copy()
            final = info["final_obs"].reshape(shape)
            for m, e in np.argwhere(ended):
                next_obs[m, e] = final[m, e]
        self.is_first = ended
        self._steps += 1
        self._returns += reward
        self._lengths += 1
        if any_ended:
            self._record(ended, truncated, info)
        transition = Transition(before, action, reward.astype(np.float32), terminated, truncated, next_obs)
        self._check(transition, began)
        return transition

    def _check(self, transition: Transition, began: np.ndarray) -> None:
        """Note the agents whose part of a step is not finite; what an agent cannot help comes before its actions."""
        kinds = {"obs": "observation", "action": "action", "next_obs": "observation", "reward": "reward"}
        for field, kind in kinds.items():
            values = getattr(transition, field)
            if values.dtype.kind != "f" or (field == "obs" and not began.any()):  # else it was the last step's next_obs
                continue
            flat = values.ravel()
            with np.errstate(over="ignore", invalid="ignore"):  # much faster than to look at each number
                suspicious = not math.isfinite(flat.dot(flat))
            if suspicious:
                for m in np.flatnonzero(~np.isfinite(values).reshape(self.agents, -1).all(1)):
                    self._faults.setdefault(int(m), kind)

    def _record(self, ended: np.ndarray, truncated: np.ndarray, info: dict[str, Any]) -> None:
        counted = {GAME_OVER: ended, GAME_RETURN: self._returns, GAME_LENGTH: self._lengths}
        final = info.get("final_info", {})
        over, returns, lengths = (final.get(k, own).reshape(ended.shape) for k, own in counted.items())
        for m, e in np.argwhere(ended & (over | truncated)):
            self._episodes.append(Episode(int(m), int(e), float(returns[m, e]), int(lengths[m, e])))
            self._returns[m, e], self._lengths[m, e] = 0.0, 0

    def pop_episodes(self, keep: bool = False) -> list[Episode]:
        """Episodes finished since the last call. keep: the next call tells of them again."""
        episodes, self._episodes = self._episodes, list(self._episodes) if keep else []
        return episodes

    def pop_faults(self) -> dict[int, str]:
        """Members that saw, did or earned what is not finite since the last call: observation, action or reward."""
        faults, self._faults = self._faults, {}
        return faults

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; `None` in place of an environment that cannot be captured."""
        return {
            "envs": [] if self.restorable == "no" else list(self.vector.call("capture")),
            "steps": self._steps,
            "obs": self.obs.copy(),
            "is_first": self.is_first.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "episodes": [tuple(e) for e in self._episodes],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> int:
        """Restore what `state_dict` gave. Returns how many environments had to start their episode anew."""
        saved = env_state.arrays(saved)
        self.obs, self.is_first = np.array(saved["obs"], self.spec.obs_dtype), np.array(saved["is_first"], bool)
        self._returns, self._lengths = np.array(saved["returns"]), np.array(saved["lengths"])
        self._episodes = [Episode(*e) for e in saved["episodes"]]
        self._steps = saved.get("steps", 1)  # absent in the first version; any number but 0 gives new seeds
        # Seeds of this moment: an episode that starts anew must not repeat the first ones of the run.
        again = self._starts()
        if self.restorable == "no":
            first = list(self.vector.reset(seed=again)[0])
        else:
            states = saved["envs"] or [None] * len(again)
            self.vector.set_attr("to_restore", list(zip(states, again, strict=True)))
            first = self.vector.call("restore")
        for (m, e), obs in zip(np.ndindex(self.agents, self.width), first, strict=True):
            if obs is not None:
                self.obs[m, e], self.is_first[m, e] = obs, True
                self._returns[m, e], self._lengths[m, e] = 0.0, 0
        return sum(obs is not None for obs in first)

    def close(self) -> None:
        self.vector.close()


def _vector(make: MakeEnv, seeds: Sequence[int], backend: EnvBackend) -> tuple[Any, EnvSpec, Restorable]:
    """A Gymnasium vector environment (SAME_STEP) of one environment per seed, what one is like, how it is restored."""
    if backend == "envpool":
        from deeprl.envs.pool import EnvPoolVector  # an extra

        pool = EnvPoolVector(_by_name(make, backend), seeds)
        return pool, pool.env_spec, "no"
    if backend == "threads":
        from deeprl.envs.mujoco.threads import ThreadedVector  # an extra of Gymnasium

        threaded = ThreadedVector(_by_name(make, backend), len(seeds))
        return threaded, threaded.env_spec, "captured"
    probe = make()
    if not isinstance(probe, gym.Env):
        raise DeeprlError(f"{type(probe).__name__} is no environment of Gymnasium (a gymnasium.Env)")
    spec, kind = env_spec(probe), restorable.how_restorable(probe)
    spec = counted_repeat(probe, spec)
    probe.close()
    layered, n = restorable.Layered(make, kind), len(seeds)
    try:
        if backend == "async":
            return async_vector(layered, n), spec, kind
        return SyncVectorEnv([layered] * n, copy=False, autoreset_mode=AutoresetMode.SAME_STEP), spec, kind
    except RuntimeError as error:
        if "space" not in str(error):
            raise
        raise DeeprlError(f"{env_name(probe)}: its spaces must be the same in all environments; {error}") from error


def _by_name(make: MakeEnv, backend: EnvBackend) -> EnvFactory:
    if not isinstance(make, EnvFactory):
        raise DeeprlError(f"env_backend: {backend} makes its environments by name; use sync or async for your own")
    return make
