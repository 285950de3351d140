"""Capture and restore the complete state of one environment, so that a resumed run steps on bit for bit.

Known: Gymnasium's MuJoCo and classic-control environments, Atari games of ale-py and MinAtar, under wrappers that
remember numbers, arrays, lists, queues, running statistics and generators. Any other environment takes part by defining
`state_dict()` (a dict of numbers, strings, lists and arrays) and `load_state_dict(state)`; its random generator
`np_random` is saved for it. What happens to environments that do not: `restorable`.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import PassiveEnvChecker
from gymnasium.wrappers.utils import RunningMeanStd

from deeprl.errors import DeeprlError

_PLAIN = (bool, int, float, str, type(None))  # not their subclasses: a checkpoint with these could not be loaded
_STATELESS = {
    "env",
    "_action_space",
    "_observation_space",
    "_metadata",
    "_cached_spec",
    "_saved_kwargs",
}


class _OpaqueError(Exception):
    """A wrapper holds something that cannot be captured."""


def capture(env: gym.Env) -> dict[str, Any] | None:
    """The state of `env` (numbers, strings, lists and arrays only), or None where it cannot be captured.

    Raises DeeprlError where an environment's own `state_dict` gives something else.
    """
    base = env.unwrapped
    inner = _inner_state(base)
    if inner is None:
        return None
    wrappers = wrapper_memory(env)
    if any(memory is None for memory in wrappers):
        return None
    return {
        "wrappers": wrappers,
        "attributes": _plain_attributes(base),
        "generator": base.np_random.bit_generator.state,
        "inner": inner,
    }


def restore(env: gym.Env, state: dict[str, Any]) -> None:
    """Bring `env`, made the same way and reset at least once, into a captured state."""
    base: Any = env.unwrapped
    state = arrays(state)
    restore_wrappers(env, state["wrappers"])
    vars(base).update(state["attributes"])
    base.np_random.bit_generator.state = state["generator"]
    inner = state["inner"]
    if hasattr(base, "load_state_dict"):
        base.load_state_dict(inner)
    elif _is_mujoco(base):
        _restore_mujoco(base.data, inner)
    elif _is_ale(base):
        base.restore_state(_ale_state(base)(inner["system"].tobytes()))
    elif _is_minatar(base):
        _restore_minatar(base.game, inner)
    else:
        for name, value in inner.items():
            setattr(base, name, value)


def wrapper_memory(env: gym.Env) -> list[dict[str, Any] | None]:
    """What each wrapper around `env` remembers, outermost first; None for one that holds something unknown."""

    def remembered(layer: gym.Env) -> dict[str, Any] | None:
        try:
            return _remembered(layer)
        except _OpaqueError:
            return None

    return [remembered(layer) for layer in wrappers_of(env)]


def restore_wrappers(env: gym.Env, memory: list[dict[str, Any] | None]) -> None:
    """Give the wrappers back what `wrapper_memory` told of them. Does nothing to those of which it told nothing."""
    for layer, attributes in zip(wrappers_of(env), memory, strict=True):
        if attributes is None:
            continue
        for name in _own(layer).keys() - attributes.keys():  # made by a step that is yet to come
            delattr(layer, name)
        vars(layer).update({k: _unpack(vars(layer).get(k), v) for k, v in attributes.items()})


def arrays(value: Any) -> Any:
    """A copy with arrays in place of tensors, which a checkpoint gives back for them."""
    if isinstance(value, dict):
        return {k: arrays(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(arrays(v) for v in value)
    if not hasattr(value, "dtype"):
        return value
    return np.array(value.numpy() if hasattr(value, "numpy") else value)


def _inner_state(base: Any) -> dict[str, Any] | None:
    if hasattr(base, "state_dict") and hasattr(base, "load_state_dict"):
        state = base.state_dict()
        if not _is_savable(state):
            raise DeeprlError(f"{type(base).__name__}.state_dict() gives more than numbers, strings, lists and arrays")
        return copy.deepcopy(state)  # its arrays may be those that the environment goes on with
    if _is_mujoco(base):
        return _mujoco_state(base.data)
    if _is_ale(base):
        return _ale_system(base)
    if _is_minatar(base):
        return _minatar_state(base.game)
    if type(base).__module__.startswith("gymnasium.envs.classic_control"):
        state = getattr(base, "state", None)
        return {"state": None if state is None else np.array(state)}
    return None


def _is_mujoco(base: gym.Env) -> bool:
    # Not their subclasses elsewhere, which may hold goals or changed models of their own.
    return type(base).__module__.startswith("gymnasium.envs.mujoco.")


def _mujoco_state(data: Any) -> dict[str, Any]:
    """All arrays of an MjData, and the time.

    The integration state alone is not enough: rewards and observations read quantities (body positions, contact
    forces) that MuJoCo computed before its last integration step and a fresh forward pass would compute after it.
    """
    state: dict[str, Any] = {"time": data.time}
    for name in dir(data):
        value = None if name.startswith("_") else getattr(data, name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "bfiu":
            state[name] = value.copy()
    return state


def _restore_mujoco(data: Any, state: dict[str, Any]) -> None:
    data.time = state["time"]
    for name, value in state.items():
        target = getattr(data, name)
        # Arrays sized by the active contacts differ in length here; MuJoCo recomputes them first in every step.
        if isinstance(target, np.ndarray) and target.shape == value.shape:
            target[...] = value


def _is_ale(base: gym.Env) -> bool:
    return type(base).__module__ == "ale_py.env"


def _ale_system(base: Any) -> dict[str, Any] | None:
    """The console, the game's settings and ALE's generator, as bytes.

    The action that ALE's own sticky actions hold is not among them, so that a game with these cannot be captured; one
    of `make_env("ALE/...")` can, whose sticky actions are a wrapper.
    """
    if base.ale.getFloat("repeat_action_probability") > 0:
        return None
    serialized = base.clone_state(include_rng=True).serialize()
    return {"system": np.frombuffer(serialized, np.uint8).copy()}


def _ale_state(base: Any) -> Any:
    """The type of ALE's saved states, without an import of what may not be installed."""
    return type(base.clone_state())


def _is_minatar(base: gym.Env) -> bool:
    return type(base).__module__ == "minatar.gym"


def _minatar_state(game: Any) -> dict[str, Any]:
    """What the game remembers, the held action of its sticky actions, and its generators.

    A seed makes one generator of the two that an unseeded game has.
    """
    own = None if game.env.random is game.random else game.env.random.get_state(legacy=False)
    return {
        "game": {k: _pack(v) for k, v in vars(game.env).items() if k != "random"},
        "last_action": int(game.last_action),
        "random": game.random.get_state(legacy=False),
        "own_random": own,
    }


def _restore_minatar(game: Any, state: dict[str, Any]) -> None:
    vars(game.env).update({k: _unpack(vars(game.env).get(k), v) for k, v in state["game"].items()})
    game.last_action = state["last_action"]
    game.random = game.env.random = np.random.RandomState()
    game.random.set_state(state["random"])
    if state["own_random"] is not None:
        game.env.random = np.random.RandomState()
        game.env.random.set_state(state["own_random"])


def _plain_attributes(layer: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(layer).items() if _is_plain(v)}


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or isinstance(value, np.bool_ | np.number)


def _is_savable(value: Any) -> bool:
    if type(value) is dict:
        return all(_is_savable(k) and _is_savable(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_savable, value))
    array = isinstance(value, np.ndarray) and value.dtype.kind in "bfiu"
    return array or _is_plain(value) or type(value).__module__ == "torch"


def _remembered(wrapper: gym.Env) -> dict[str, Any]:
    return {k: _pack(v) for k, v in _own(wrapper).items()}


def _own(wrapper: gym.Env) -> dict[str, Any]:
    """The attributes of a wrapper that may tell one moment from another."""
    if isinstance(wrapper, PassiveEnvChecker):  # looks at the first steps after it was made, and changes nothing
        return {}
    own = {k: v for k, v in vars(wrapper).items() if k not in _STATELESS}
    return {k: v for k, v in own.items() if not callable(v) and not isinstance(v, gym.Space)}


def _pack(value: Any) -> Any:
    if _is_plain(value):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "bfiu":
        return value.copy()
    if isinstance(value, list | tuple | deque):
        return (tuple if isinstance(value, tuple) else list)(_pack(v) for v in value)
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, dict | RunningMeanStd):
        return {_pack(k): _pack(v) for k, v in (value if isinstance(value, dict) else vars(value)).items()}
    raise _OpaqueError


def _unpack(old: Any, packed: Any) -> Any:
    """The packed value in the form that the attribute has in a new environment."""
    if isinstance(old, np.random.Generator):
        old.bit_generator.state = packed
        return old
    if isinstance(old, RunningMeanStd) and isinstance(packed, dict):
        vars(old).update(packed)
        return old
    if isinstance(old, dict) and isinstance(packed, dict):
        kept = copy.copy(old)  # such as a defaultdict, with what it makes of new keys
        kept.clear()
        kept.update({k: _unpack(old.get(k), v) for k, v in packed.items()})
        return kept
    return _unpack_all(old, packed) if isinstance(packed, list | tuple) else packed


def _unpack_all(old: Any, packed: list[Any] | tuple[Any, ...]) -> Any:
    alike = isinstance(old, list | tuple | deque) and len(old) == len(packed)
    values = [_unpack(o, v) for o, v in zip(old if alike else [None] * len(packed), packed, strict=True)]
    if isinstance(old, deque):
        return deque(values, old.maxlen)
    if hasattr(old, "_make"):
        return old._make(values)
    return tuple(values) if isinstance(packed, tuple) else values


def wrappers_of(env: gym.Env) -> list[gym.Env]:
    """The wrappers around an environment, from outside to inside."""
    layers: list[gym.Env] = []
    while isinstance(env, gym.Wrapper):
        layers.append(env)
        env = env.env
    return layers
