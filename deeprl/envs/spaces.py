"""What an environment observes and acts in: checks, and the way from an agent's action to the environment's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from deeprl.core.spec import EnvSpec
from deeprl.envs.checked import env_name
from deeprl.envs.state import wrappers_of
from deeprl.errors import DeeprlError

_FLATTEN = "try --wrappers gymnasium.wrappers:FlattenObservation"


def env_spec(env: gym.Env) -> EnvSpec:
    """Shapes, types and bounds of an environment.

    Supported are `Box` observations and `Discrete` or flat, bounded `Box` actions of floats. Raises DeeprlError for all
    else.
    """
    name = env_name(env)
    obs, action = (getattr(env, f"{kind}_space", None) for kind in ("observation", "action"))
    if not isinstance(obs, spaces.Box) or not obs.shape:
        raise DeeprlError(f"{name} observes {obs}; supported are Box vectors and images{_flatten_hint(obs)}")
    frame_stack = _frame_stack(env)
    repeat = _action_repeat(env)
    dtype = obs.dtype.name if obs.dtype.name in ("uint8", "bool") and len(obs.shape) > 1 else "float32"
    if isinstance(action, spaces.Discrete):
        return EnvSpec(obs.shape, 0, (), (), dtype, int(action.n), int(action.start), frame_stack, repeat)
    if not isinstance(action, spaces.Box) or len(action.shape) != 1:
        raise DeeprlError(
            f"{name} acts in {action}; supported are Discrete and flat Box actions (wrap it to have one of them)"
        )
    if action.dtype.kind != "f":
        raise DeeprlError(
            f"{name} acts in whole numbers, {action}; wrap it to take floats and round them, or Discrete actions"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.float32(action.high) - np.float32(action.low)
    if not np.isfinite(width).all():
        raise DeeprlError(f"{name} has unbounded actions {action}; wrap it so that float32 can hold bounds and range")
    low, high = tuple(action.low.tolist()), tuple(action.high.tolist())
    return EnvSpec(
        obs.shape, len(low), low, high, dtype, 0, 0, frame_stack, repeat, action_dtype=np.dtype(action.dtype).name
    )


def _flatten_hint(obs: gym.Space | None) -> str:
    """What makes vectors of observations that are no Box, where that works; else the parts that are in the way."""
    if _flattenable(obs):
        return f" ({_FLATTEN})"
    if not isinstance(obs, spaces.Dict):
        return ""
    fine = [str(key) for key, part in obs.spaces.items() if _flattenable(part)]
    others = [str(key) for key in obs.spaces if str(key) not in fine]
    choose = f"; choose among {', '.join(fine)} by a wrapper (--wrappers MODULE:CLASS)" if fine else ""
    return f" (no vector can hold {', '.join(others)}{choose})"


def _flattenable(space: gym.Space | None) -> bool:
    try:
        return space is not None and isinstance(spaces.flatten_space(space), spaces.Box)
    except NotImplementedError:  # of a space that Gymnasium does not know
        return False


def require(algorithm: str, spec: EnvSpec, actions: Literal["continuous", "discrete"], images: bool = False) -> None:
    """Raise DeeprlError unless the environment has the actions and observations that an algorithm can learn with."""
    if actions == "continuous" and spec.discrete:
        raise DeeprlError(
            f"{algorithm} needs continuous actions (a flat Box), not {spec.actions} discrete ones; try dqn"
        )
    if actions == "discrete" and not spec.discrete:
        raise DeeprlError(
            f"{algorithm} needs discrete actions, not {spec.action_dim} continuous ones (a Box); try sac or td3"
        )
    if spec.image and not images:
        raise DeeprlError(f"{algorithm} needs vectors, not observations of shape {spec.obs_shape} ({_FLATTEN})")


def to_env_action(spec: EnvSpec, action: np.ndarray) -> np.ndarray:
    """An agent's actions in the environment's own terms.

    Continuous [..., A] in [-1, 1]: rescaled to the environment's units and clipped to its bounds, of its type. NaN,
    which an agent that diverged may give, becomes 0: some simulators would never recover from it. Discrete [...] in
    0 .. n - 1: counted from the first action that the environment knows, int64.
    """
    if spec.discrete:
        return action.astype(np.int64, copy=False) + spec.action_start
    low, high = spec.action_bounds
    action = np.nan_to_num(action, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.clip(low + (action + 1.0) * 0.5 * (high - low), low, high).astype(spec.action_dtype, copy=False)


def _action_repeat(env: gym.Env) -> int:
    """Simulator steps of one step, as far as the wrappers tell that deeprl knows."""
    repeat = 1
    for layer in (*wrappers_of(env), env.unwrapped):
        if isinstance(layer, gym.wrappers.MaxAndSkipObservation):
            repeat *= int(layer._skip)
        elif isinstance(layer, gym.wrappers.AtariPreprocessing):
            repeat *= int(layer.frame_skip)
        else:
            repeat *= int(vars(layer).get("deeprl_action_repeat", 1))
    return repeat


def counted_repeat(env: gym.Env, spec: EnvSpec) -> EnvSpec:
    """The spec with the simulator steps of a step counted where a wrapper of others may repeat actions.

    Three random steps are made for it after a reset: of an environment that serves nothing else. `action_repeat` is 0
    where they differ.
    """
    if all(type(layer).__module__.startswith(("gymnasium.", "deeprl.")) for layer in wrappers_of(env)):
        return spec
    base, made, found = env.unwrapped, 0, set[int]()
    step, own = base.step, vars(base).get("step")

    def counting(action: Any) -> Any:
        nonlocal made
        made += 1
        return step(action)

    try:
        env.reset(seed=0)
        base.step = counting  # type: ignore[method-assign]
        env.action_space.seed(0)
        for _ in range(3):
            made = 0
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if not found or not (terminated or truncated):  # which may cut a repetition short
                found.add(made)
            if terminated or truncated:
                break
    except Exception:  # environments are others' code; what is wrong with this one shows where it is used
        return spec
    finally:
        vars(base).pop("step", None)
        if own is not None:
            base.step = own  # type: ignore[method-assign]
    inner = int(vars(base).get("deeprl_action_repeat", 1))  # of a base that repeats actions itself
    return replace(spec, action_repeat=inner * found.pop() if len(found) == 1 else 0)


def _frame_stack(env: gym.Env) -> int:
    """Frames that a wrapper stacks along the first axis of the observation, 0 without such a wrapper."""
    for layer in wrappers_of(env):
        if isinstance(layer, gym.wrappers.FrameStackObservation):
            shape = env.observation_space.shape  # which wrappers around it may have changed
            return int(layer.stack_size) if shape is not None and shape[0] == layer.stack_size else 0
        if isinstance(layer, gym.ObservationWrapper):
            return 0  # what comes out need not be a stack any more
    return 0
