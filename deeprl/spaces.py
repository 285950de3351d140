"""What an environment observes and acts in: checks, and the way from an agent's action to the environment's."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from deeprl.errors import DeeprlError
from deeprl.spec import EnvSpec

_FLATTEN = "try --wrappers gymnasium.wrappers:FlattenObservation"


def env_spec(env: gym.Env) -> EnvSpec:
    """Shapes, types and bounds of an environment.

    Supported are `Box` observations and `Discrete` or flat, bounded `Box` actions. Raises DeeprlError for all else.
    """
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, spaces.Box) or not obs.shape:
        raise DeeprlError(f"{name} observes {obs}; supported are Box vectors and images ({_FLATTEN})")
    frame_stack = _frame_stack(env)
    repeat = int(getattr(env.unwrapped, "action_repeat", None) or 1)
    dtype = obs.dtype.name if obs.dtype.name in ("uint8", "bool") and len(obs.shape) > 1 else "float32"
    if isinstance(action, spaces.Discrete):
        return EnvSpec(obs.shape, 0, (), (), dtype, int(action.n), int(action.start), frame_stack, repeat)
    if not isinstance(action, spaces.Box) or len(action.shape) != 1:
        raise DeeprlError(
            f"{name} acts in {action}; supported are Discrete and flat Box actions (wrap it to have one of them)"
        )
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise DeeprlError(f"{name} has unbounded actions {action}; wrap it so that they have finite bounds")
    low, high = tuple(action.low.tolist()), tuple(action.high.tolist())
    return EnvSpec(obs.shape, action.shape[0], low, high, dtype, frame_stack=frame_stack, action_repeat=repeat)


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

    Continuous [..., A] in [-1, 1]: rescaled to the environment's units and clipped to its bounds, float32. NaN, which
    an agent that diverged may give, becomes 0: some simulators would never recover from it. Discrete [...] in
    0 .. n - 1: counted from the first action that the environment knows, int64.
    """
    if spec.discrete:
        return action.astype(np.int64, copy=False) + spec.action_start
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    action = np.nan_to_num(action, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.clip(low + (action + 1.0) * 0.5 * (high - low), low, high).astype(np.float32, copy=False)


def _frame_stack(env: gym.Env) -> int:
    """Frames that a wrapper stacks along the first axis of the observation, 0 without such a wrapper."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.FrameStackObservation):
            shape = env.observation_space.shape  # which wrappers around it may have changed
            return int(layer.stack_size) if shape is not None and shape[0] == layer.stack_size else 0
        if isinstance(layer, gym.ObservationWrapper):
            return 0  # what comes out need not be a stack any more
        layer = layer.env
    return 0
