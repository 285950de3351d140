"""Environments of a population: S agents x N environments each, behind one Gymnasium vector environment.

Actions are in [-1, 1] and rescaled to the environment's bounds here and nowhere else. Environments reset in the step
that ends an episode (`SAME_STEP`), and `Transition.next_obs` is still the true final observation. Environment e of the
agent with seed s is seeded from (s, e) alone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from deeprl import env_state, rng
from deeprl.errors import DeeprlError, nearest
from deeprl.spec import EnvSpec, Transition

EnvBackend = Literal["sync", "async"]
MakeEnv = Callable[[], gym.Env]

# Packages whose environments come with an extra of setup.cfg, and what makes Gymnasium know them.
_NAMESPACES = {"ALE": ("atari", "ale_py"), "MinAtar": ("minatar", "minatar.gym")}
_EXTRAS = {"ale_py": "atari", "minatar": "minatar", "Box2D": "box2d", "box2d": "box2d"}
_EXTRAS["gymnasium_robotics"] = "robotics"


class Episode(NamedTuple):
    """A finished episode: the member and its environment, the undiscounted return, the length in steps."""

    member: int
    env: int
    ret: float
    length: int


def make_env(
    env: str, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = (), render: bool = False
) -> gym.Env:
    """One environment: a Gymnasium id, or `module:Id-v0` to import `module` first; wrappers are `module:Class`.

    Raises DeeprlError for an unknown id (with the nearest names), a missing extra (with the command that installs it)
    and arguments that the environment refuses.
    """
    kwargs: dict[str, Any] = dict(env_kwargs or {})
    if render:
        kwargs["render_mode"] = "rgb_array"
        if not os.environ.get("DISPLAY"):  # headless: MuJoCo renders through EGL, SDL without a screen
            os.environ.setdefault("MUJOCO_GL", "egl")
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    _see_working_directory()
    _warn_once_per_text()
    if (namespace := env.partition("/")[0]) in _NAMESPACES:
        _register(namespace)
    try:
        made = gym.make(env, **kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise DeeprlError(f"{env}: {_one_line(error)}{_install_hint(str(error))}") from error
    except (gym.error.UnregisteredEnv, gym.error.Error) as error:
        raise DeeprlError(_unknown(env, error)) from error
    except ModuleNotFoundError as error:
        reason = f"cannot import {error.name!r}" if error.name else _one_line(error)
        raise DeeprlError(f"{env}: {reason}{_install_hint(str(error))}") from error
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise DeeprlError(f"{env} with arguments {kwargs}: {_one_line(error)}") from error
    for wrapper in wrappers:
        try:
            made = load_object(wrapper, "wrapper")(made)
        except (TypeError, ValueError, AssertionError, AttributeError) as error:
            raise DeeprlError(f"wrapper {wrapper}: {_one_line(error)}") from error
    return made


@dataclasses.dataclass(frozen=True)
class EnvFactory:
    """Makes one environment as `make_env` does; picklable, for environments in processes of their own."""

    env: str
    env_kwargs: dict[str, Any]
    wrappers: tuple[str, ...]

    def __call__(self) -> gym.Env:
        return make_env(self.env, self.env_kwargs, self.wrappers)


def load_object(path: str, what: str) -> Any:
    """The object that `module:name` names. Raises DeeprlError that says what is wrong with it."""
    _see_working_directory()
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeeprlError(f"{what} {path!r}: expected module:name; {_one_line(error)}") from error


def box_spec(env: gym.Env) -> EnvSpec:
    """Shapes and bounds for algorithms with continuous actions.

    Raises DeeprlError unless the observation is a flat `Box` and the action a flat `Box` with finite bounds.
    """
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
        raise DeeprlError(f"{name} observes {obs}; supported are flat Box vectors (try a FlattenObservation wrapper)")
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1:
        raise DeeprlError(f"{name} acts in {action}; this algorithm needs a flat Box of continuous actions")
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise DeeprlError(f"{name} has unbounded actions {action}; wrap it so that they have finite bounds")
    return EnvSpec(obs.shape, action.shape[0], tuple(action.low.tolist()), tuple(action.high.tolist()))


def to_env_action(spec: EnvSpec, action: np.ndarray) -> np.ndarray:
    """Actions [..., A] in [-1, 1] to the environment's own units (clipped to its bounds, float32)."""
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    return np.clip(low + (action + 1.0) * 0.5 * (high - low), low, high).astype(np.float32, copy=False)


def env_seeds(seed: int, stream: str, n: int, counter: int = 0) -> list[int]:
    """Reset seeds of an agent's environments 0 .. n-1, drawn from the agent's own stream (`env` or `eval`)."""
    # The first n of 2 n draws come from a lane of the generator each, so that seed e does not depend on n.
    return [int(s) for s in rng.randint(rng.key(seed, stream, counter), (2 * n,), 2**31 - 1)[:n]]


class PopulationEnvs:
    """S x N environments stepped together.

    `obs` [S, N, O] float32 is what the agents see now; `is_first` [S, N] tells which of them begin an episode.
    Running returns and lengths are kept per environment; `pop_episodes` hands out the episodes finished since its last
    call, in order.
    """

    def __init__(self, make: MakeEnv, seeds: Sequence[int], envs_per_agent: int = 1, backend: EnvBackend = "sync"):
        self.agents, self.width = len(seeds), envs_per_agent
        fns = [make] * (self.agents * self.width)
        if backend == "sync":
            self.vector: Any = SyncVectorEnv(fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
            self.spec = box_spec(self.vector.envs[0])
        else:
            probe = make()
            self.spec = box_spec(probe)
            probe.close()
            # "spawn": a fork would copy the locks of torch's thread pool in whatever state they are.
            self.vector = AsyncVectorEnv(fns, copy=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
        self._seeds = [s for seed in seeds for s in env_seeds(seed, "env", self.width)]
        self._returns = np.zeros((self.agents, self.width))
        self._lengths = np.zeros((self.agents, self.width), np.int64)
        self._episodes: list[Episode] = []
        self.obs = self._shaped(self.vector.reset(seed=self._seeds)[0])
        self.is_first = np.ones((self.agents, self.width), bool)

    def _shaped(self, obs: np.ndarray) -> np.ndarray:
        return obs.reshape(self.agents, self.width, *self.spec.obs_shape).astype(np.float32)

    def step(self, action: np.ndarray) -> Transition:
        """One step of every environment. action: float [S, N, A] in [-1, 1]. Moves `obs` on."""
        flat = to_env_action(self.spec, action.reshape(self.agents * self.width, -1))
        obs, reward, terminated, truncated, info = self.vector.step(flat)
        shape = (self.agents, self.width)
        reward, terminated = reward.reshape(shape), terminated.reshape(shape)
        truncated = truncated.reshape(shape)
        before, self.obs = self.obs, self._shaped(obs)
        next_obs = self.obs
        ended = terminated | truncated
        if ended.any():
            next_obs = next_obs.copy()
            final = info["final_obs"].reshape(shape)
            for m, e in np.argwhere(ended):
                next_obs[m, e] = final[m, e]
        self.is_first = ended
        self._record(reward, ended)
        return Transition(before, action, reward.astype(np.float32), terminated, truncated, next_obs)

    def _record(self, reward: np.ndarray, ended: np.ndarray) -> None:
        self._returns += reward
        self._lengths += 1
        for m, e in np.argwhere(ended):
            self._episodes.append(Episode(int(m), int(e), float(self._returns[m, e]), int(self._lengths[m, e])))
            self._returns[m, e], self._lengths[m, e] = 0.0, 0

    def pop_episodes(self) -> list[Episode]:
        """Episodes finished since the last call."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; `None` in place of an environment that cannot be captured."""
        states = [env_state.capture(env) for env in getattr(self.vector, "envs", [])]
        return {
            "envs": states,
            "obs": self.obs.copy(),
            "is_first": self.is_first.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "episodes": [tuple(e) for e in self._episodes],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> int:
        """Restore what `state_dict` gave. Returns how many environments had to start their episode anew."""
        saved = env_state.arrays(saved)
        self.obs, self.is_first = np.array(saved["obs"], np.float32), np.array(saved["is_first"], bool)
        self._returns, self._lengths = np.array(saved["returns"]), np.array(saved["lengths"])
        self._episodes = [Episode(*e) for e in saved["episodes"]]
        states = saved["envs"] or [None] * (self.agents * self.width)
        # Another seed than at the start: an environment that cannot be restored must not repeat its first episodes.
        again = [s ^ (int(n) + 1) for s, n in zip(self._seeds, self._lengths.flat, strict=True)]
        fresh = self._shaped(self.vector.reset(seed=again)[0])
        for i, state in enumerate(states):
            m, e = divmod(i, self.width)
            if state is not None:
                env_state.restore(self.vector.envs[i], state)
            else:
                self.obs[m, e], self.is_first[m, e] = fresh[m, e], True
                self._returns[m, e], self._lengths[m, e] = 0.0, 0
        return sum(state is None for state in states)

    def close(self) -> None:
        self.vector.close()


def _see_working_directory() -> None:
    """Let `module:name` find a module next to where the user stands, without hiding any that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


@functools.cache
def _warn_once_per_text() -> None:
    """MuJoCo's warnings once each on stderr, instead of a MUJOCO_LOG.TXT wherever the user stands.

    Left out: the deprecation of an attribute in the models that Gymnasium ships, which no user can mend.
    """
    try:
        import mujoco
    except ImportError:
        return
    told = set()

    def warn(text: str) -> None:
        if text not in told and "settotalmass" not in text:
            print(f"MuJoCo: {text}", file=sys.stderr)
        told.add(text)

    mujoco.set_mju_user_warning(warn)


def _one_line(error: BaseException) -> str:
    return str(error).replace("\n", " ").replace("`", "").strip()


def _install_hint(text: str) -> str:
    extra = next((extra for name, extra in _EXTRAS.items() if name in text), None)
    return f"; install it with: pip install 'deeprl[{extra}]'" if extra else ""


def _register(namespace: str) -> None:
    """Import the package behind a name space such as ALE/. Raises DeeprlError with the command that installs it."""
    extra, package = _NAMESPACES[namespace]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        hint = f"install it with: pip install 'deeprl[{extra}]'"
        raise DeeprlError(f"the environments of {namespace}/ are not installed; {hint}") from error
    getattr(module, "register_envs", lambda: None)()


def _unknown(env: str, error: Exception) -> str:
    return f"unknown environment {env!r}{nearest(env, gym.registry) or f' ({_one_line(error)})'}"
