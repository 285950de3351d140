"""Device environments by their ids, and the same ones for whoever steps Gymnasium environments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from deeprl.core import rng
from deeprl.core.objects import imported
from deeprl.core.tree import flatten, load_flat
from deeprl.envs.device import classic, minatar, small
from deeprl.envs.device.base import DeviceEnv
from deeprl.envs.device.minatar_seaquest import Seaquest
from deeprl.errors import DeeprlError, nearest

_MAKERS: dict[str, Callable[..., DeviceEnv]] = {
    "CartPole-v1": classic.CartPole,
    "Pendulum-v1": classic.Pendulum,
    "Acrobot-v1": classic.Acrobot,
    "MountainCar-v0": classic.MountainCar,
    "MountainCarContinuous-v0": classic.MountainCarContinuous,
}
_OURS: set[str] = set()  # ids that Gymnasium knows from here alone
_MINATAR = (minatar.Asterix, minatar.Breakout, minatar.Freeway, Seaquest, minatar.SpaceInvaders)
for _game in _MINATAR:  # v0: all six actions, v1: those that do something
    for _version, _minimal in (("v0", False), ("v1", True)):
        _id = f"MinAtar/{_game.__name__}-{_version}"
        _MAKERS[_id] = functools.partial(_game, use_minimal_action_set=_minimal)


def register(name: str, make: Callable[..., DeviceEnv]) -> None:
    """Give an environment an id, such as `Corridor-v0`, for `--env-backend device`.

    make: called with the `env_kwargs` of a run. Where Gymnasium does not know the id, it is registered there too
    (`AsGymnasium`): agents are evaluated in that, and may be trained in it. It draws no pictures.
    """
    _MAKERS[name] = make
    if name not in gym.registry:
        gym.register(name, functools.partial(_for_gymnasium, make))
        _OURS.add(name)


def _for_gymnasium(make: Callable[..., DeviceEnv], episode_limit: int | None = None, **kwargs: Any) -> gym.Env:
    env = make(**kwargs)
    limit = env.limit if episode_limit is None else episode_limit
    return gym.wrappers.TimeLimit(AsGymnasium(env), limit) if limit else AsGymnasium(env)


def for_make(env: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `gym.make` for an id: another limit takes the place of the own one of a device environment."""
    kwargs, name = dict(env_kwargs), imported(env)
    if name in _OURS and "max_episode_steps" in kwargs:
        kwargs["episode_limit"] = _valid_limit(name, kwargs.pop("max_episode_steps"))
    return kwargs


def _valid_limit(name: str, limit: Any) -> int:
    """0 for -1, which is none; raises DeeprlError for what is no whole number above 0."""
    if type(limit) is not int or not (limit > 0 or limit == -1):
        raise DeeprlError(
            f"{name}: max_episode_steps must be a positive whole number, or -1 for no limit, not {limit!r}"
        )
    return max(limit, 0)


def device_env(env: str, env_kwargs: Mapping[str, Any] | None = None) -> tuple[DeviceEnv, int]:
    """A device environment, an id or `module:Id-v0` to import `module` first, and the limit of its episodes (0: none).

    env_kwargs: what its constructor takes, and `max_episode_steps` in place of its own limit.

    Raises DeeprlError for an id that has none, with those that have, and for arguments that it does not take.
    """
    if (name := imported(env)) not in _MAKERS:
        known = ", ".join(sorted(_MAKERS))
        raise DeeprlError(f"env_backend device: {name} has no form on the device{nearest(name, _MAKERS)}; have {known}")
    kwargs = dict(env_kwargs or {})
    limit = _valid_limit(name, kwargs.pop("max_episode_steps")) if "max_episode_steps" in kwargs else None
    try:
        made = _MAKERS[name](**kwargs)
    except (TypeError, ValueError) as error:
        raise DeeprlError(f"{name} on the device: {error}") from error
    return made, made.limit if limit is None else limit


class AsGymnasium(gym.Env):
    """A device environment as one of Gymnasium, whose `TimeLimit` cuts its episodes.

    The first episode after `reset(seed=...)` and those after it depend on the seed alone.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: DeviceEnv):
        self.env, spec = env, env.spec
        low, high = {"uint8": (0, 255), "bool": (0, 1)}.get(spec.obs_dtype, (-np.inf, np.inf))
        self.observation_space = spaces.Box(low, high, spec.obs_shape, np.dtype(spec.obs_dtype))
        if spec.discrete:
            self.action_space: Any = spaces.Discrete(spec.actions, start=spec.action_start)
        else:
            self.action_space = spaces.Box(
                np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
            )
        self._state: Any = None
        self._key, self._draws = rng.key(0, "env"), 0

    def _next_key(self) -> rng.Key:
        self._draws += 1
        return rng.fold_in(self._key, self._draws)

    def _seen(self) -> np.ndarray:
        return self.env.observe(self._state).numpy()

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self._key, self._draws = rng.key(int(self.np_random.integers(2**32)), "env"), 0
        self._state = self.env.reset(self._next_key())
        return self._seen(), {}

    @torch.no_grad()
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        done = np.asarray(action, np.int64 if self.env.spec.discrete else np.float32)
        found = self.env.step(self._state, torch.as_tensor(done), self._next_key())
        self._state = found.state
        return self._seen(), float(found.reward), bool(found.terminated), False, {}

    def state_dict(self) -> dict[str, Any]:
        """For an exact resume."""
        state = {} if self._state is None else {k: x.numpy().copy() for k, x in flatten(self._state).items()}
        return {"state": state, "key": self._key.tolist(), "draws": self._draws}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._key, self._draws = torch.tensor(saved["key"], dtype=torch.int64), int(saved["draws"])
        if saved["state"]:
            self._state = self.env.reset(self._key)
            load_flat(self._state, {k: torch.as_tensor(np.array(x)) for k, x in saved["state"].items()})


for _name, _make in {"Catch-v0": small.Catch, "TMaze-v0": small.TMaze}.items():
    register(_name, _make)
