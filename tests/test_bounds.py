"""What returns can be, beside what environments give."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest

from deeprl.envs.bounds import UNBOUNDED, return_bounds
from deeprl.envs.make import make_env


def played(env: gym.Env, action: float | None) -> float:
    """The return of an episode of random actions, or of always the greatest or least one."""
    env.action_space.seed(0)
    env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        space = env.action_space
        chosen = space.sample() if action is None else np.full(space.shape, action, space.dtype) * space.high
        _, reward, terminated, truncated, _ = env.step(chosen)
        total, over = total + float(reward), terminated or truncated
    return total


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v0",
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "Pendulum-v1",
        "Catch-v0",
        "InvertedPendulum-v5",
        "Reacher-v5",
        "Pusher-v5",
        "MinAtar/Breakout-v1",
        "MinAtar/Freeway-v1",
    ],
)
def test_random_episodes_lie_within(name: str) -> None:
    low, high = return_bounds(name)
    env = make_env(name)
    assert low <= played(env, None) <= high
    env.close()


def test_the_least_return_is_reached_by_the_worst_policy() -> None:
    env = make_env("MountainCarContinuous-v0")
    assert played(env, -1.0) >= return_bounds("MountainCarContinuous-v0")[0]
    assert return_bounds("Acrobot-v1") == (-gym.spec("Acrobot-v1").max_episode_steps, 0.0)
    assert return_bounds("MountainCar-v0") == (-gym.spec("MountainCar-v0").max_episode_steps, 0.0)
    assert return_bounds("CartPole-v1")[1] == gym.spec("CartPole-v1").max_episode_steps
    # Pendulum: angle pi, speed 8, torque 2 at each of 200 steps
    assert return_bounds("Pendulum-v1") == pytest.approx((-200 * (math.pi**2 + 6.4 + 0.004), 0.0))


def test_the_control_suite_gives_a_thousand_at_most() -> None:
    assert return_bounds("dmc/walker-run", {"action_repeat": 2}) == (0.0, 1000.0)
    assert return_bounds("dmc/lqr-lqr_2_1") == UNBOUNDED
    env = make_env("dmc/cartpole-balance", {"action_repeat": 4})
    assert 0.0 <= played(env, None) <= 1000.0


@pytest.mark.parametrize(
    ("name", "kwargs", "wrappers"),
    [
        ("HalfCheetah-v5", {}, ()),
        ("my_module:CartPole-v1", {}, ()),
        ("CartPole-v1", {"sutton_barto_reward": True}, ()),
        ("dmc/walker-run", {"max_episode_steps": 2000}, ()),
        ("CartPole-v1", {}, ("my_module:Doubled",)),
    ],
)
def test_nothing_is_known_of_others(name: str, kwargs: dict[str, object], wrappers: tuple[str, ...]) -> None:
    assert return_bounds(name, kwargs, wrappers) == UNBOUNDED
