"""What tasks of Gymnasium on MuJoCo observe and earn, of many environments at once: arrays of NumPy or tensors.

For those tasks in which both follow from positions qpos [B, nq] and velocities qvel [B, nv] alone. The settings are
read from an environment that Gymnasium made, so that `env_kwargs` mean what they mean there. The order of the
arithmetic is Gymnasium's. Rules have

    skipped     first positions, which are not observed
    noise       scale of positions and velocities at an episode's begin: uniform in [-noise, noise], or `normal`
                velocities of this deviation
    observe     writes what is seen into an array [B, O]
    judge       rewards [B] and whether an episode is over [B], after a step with actions [B, A] in the task's units,
                from positions x [B] before it
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from deeprl.core.objects import imported
from deeprl.envs.state import wrappers_of
from deeprl.errors import DeeprlError, nearest


@dataclass(frozen=True)
class Runner:
    """To run along x: HalfCheetah, Hopper, Walker2d, Swimmer. Some end where `z`, angle or state leave their ranges.

    dt: seconds of a step; forward, control, healthy: weights of the rewards; bound: of observed velocities.
    """

    dt: float
    skipped: int
    forward: float
    control: float
    noise: float
    normal: bool = False
    bound: float = math.inf
    healthy: float = 0.0
    ends: bool = False
    z: tuple[float, float] | None = None
    angle: tuple[float, float] | None = None
    state: tuple[float, float] | None = None

    def observe(self, qpos: Any, qvel: Any, obs: Any) -> None:
        """Positions and bounded velocities."""
        positions = qpos.shape[1] - self.skipped
        obs[:, :positions] = qpos[:, self.skipped :]
        obs[:, positions:] = qvel if math.isinf(self.bound) else qvel.clip(-self.bound, self.bound)

    def judge(self, x: Any, qpos: Any, qvel: Any, action: Any) -> tuple[Any, Any]:
        """Speed and health, less what the actions cost."""
        cost = self.control * squares(action)
        earned = self.forward * ((qpos[:, 0] - x) / self.dt)
        if self.z is None or self.angle is None:
            return earned - cost, x > math.inf  # never
        well = _inside(qpos[:, 1], self.z) & _inside(qpos[:, 2], self.angle)
        if self.state is not None:
            well = well & _inside(qpos[:, 2:], self.state).all(-1) & _inside(qvel, self.state).all(-1)
        return earned + well * self.healthy - cost, ~well & self.ends


@dataclass(frozen=True)
class Balance:
    """To keep a pole upright on a cart: InvertedPendulum."""

    noise: float
    skipped: int = 0
    normal: bool = False

    def observe(self, qpos: Any, qvel: Any, obs: Any) -> None:
        """All of it."""
        obs[:, :2], obs[:, 2:] = qpos, qvel

    def judge(self, x: Any, qpos: Any, qvel: Any, action: Any) -> tuple[Any, Any]:
        """1 for each step on which it has not fallen."""
        upright = (abs(qpos[:, 1]) <= 0.2) & (abs(qpos) < math.inf).all(-1) & (abs(qvel) < math.inf).all(-1)
        return upright * 1.0, ~upright


Rules = Runner | Balance


def squares(action: Any) -> Any:
    """The sum of the squares of each row, in the order in which NumPy adds up to seven of them."""
    total = action[:, 0] * action[:, 0]
    for i in range(1, action.shape[1]):
        total = total + action[:, i] * action[:, i]
    return total


def _inside(values: Any, bounds: tuple[float, float]) -> Any:
    return (bounds[0] < values) & (values < bounds[1])


def _runner(env: Any, skipped: int, **more: Any) -> Runner:
    skipped *= int(env._exclude_current_positions_from_observation)
    weights = env._forward_reward_weight, env._ctrl_cost_weight
    return Runner(env.dt, skipped, *weights, env._reset_noise_scale, **more)


def _upright(env: Any, **more: Any) -> Runner:
    ranges = {"z": env._healthy_z_range, "angle": env._healthy_angle_range}
    ends = {"healthy": env._healthy_reward, "ends": env._terminate_when_unhealthy}
    return _runner(env, 1, bound=10.0, **ranges, **ends, **more)


_RULES: dict[str, Callable[[Any], Rules]] = {
    "HalfCheetah-v5": lambda env: _runner(env, 1, normal=True),
    "Hopper-v5": lambda env: _upright(env, state=env._healthy_state_range),
    "InvertedPendulum-v5": lambda env: Balance(env._reset_noise_scale),
    "Swimmer-v5": lambda env: _runner(env, 2),
    "Walker2d-v5": lambda env: _upright(env, state=None),
}


def known(env: str, backend: str) -> str:
    """The id of a task that has rules, of `env`. Raises DeeprlError, with those that have, for another."""
    if (name := imported(env)) not in _RULES:
        have = ", ".join(_RULES)
        raise DeeprlError(f"env_backend {backend}: {name} is none of its tasks{nearest(name, _RULES)}; have {have}")
    return name


def rules_of(env: gym.Env, name: str) -> Rules:
    """The rules of a task, with the settings of an environment of it that Gymnasium made."""
    return _RULES[name](env.unwrapped)


def time_limit(env: gym.Env) -> Any:
    """The layer of Gymnasium that cuts the episodes of an environment, or None."""
    return next((layer for layer in wrappers_of(env) if isinstance(layer, gym.wrappers.TimeLimit)), None)
