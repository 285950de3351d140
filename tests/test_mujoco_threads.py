"""MuJoCo in threads: the numbers of Gymnasium's environments one after another, bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from deeprl.envs.make import EnvFactory
from deeprl.envs.mujoco.rules import squares
from deeprl.envs.vector import PopulationEnvs
from deeprl.errors import DeeprlError

SEEDS = [5, 6, 9]


def envs_of(env: str, backend: Any, **kwargs: Any) -> PopulationEnvs:
    return PopulationEnvs(EnvFactory(env, kwargs, ()), SEEDS, 2, backend)


def same_steps(one: PopulationEnvs, other: PopulationEnvs, steps: int, seed: int = 0) -> int:
    """Do the same in both and compare all of it. Returns how many episodes have ended."""
    draw, ends = np.random.default_rng(seed), 0
    np.testing.assert_array_equal(one.obs, other.obs)
    for _ in range(steps):
        action = draw.uniform(-1.3, 1.3, (len(SEEDS), 2, one.spec.action_dim)).astype(np.float32)
        for mine, theirs in zip(one.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_array_equal(one.is_first, other.is_first)
        ends += int(one.is_first.sum())
    assert one.pop_episodes() == other.pop_episodes()
    return ends


@pytest.mark.parametrize(
    ("env", "kwargs", "ends"),
    [
        ("HalfCheetah-v5", {"max_episode_steps": 40}, 12),
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 0.7}, 0),
        ("Swimmer-v5", {"max_episode_steps": 70, "forward_reward_weight": 3.0}, 6),
        ("Hopper-v5", {}, 24),
        ("Hopper-v5", {"healthy_state_range": (-1.0, 1.0), "healthy_reward": 2.0, "frame_skip": 2}, 50),
        ("Walker2d-v5", {}, 20),
        ("Walker2d-v5", {"terminate_when_unhealthy": False, "max_episode_steps": -1}, 0),
        ("InvertedPendulum-v5", {}, 50),
    ],
)
def test_threads_give_the_numbers_of_environments_one_after_another(env, kwargs, ends):
    one, other = envs_of(env, "threads", **kwargs), envs_of(env, "sync", **kwargs)
    assert one.spec == other.spec
    assert same_steps(one, other, 100) >= ends
    assert ends or not one.is_first.any()
    one.close()
    other.close()


@pytest.mark.parametrize("written", ["threads", "sync"])
def test_threads_go_on_from_what_was_saved(written):
    """Within episodes, with their solvers' warm starts and the steps to the time limit; whoever saved it."""
    kwargs: dict[str, Any] = {"max_episode_steps": 60}
    before, going = envs_of("Hopper-v5", written, **kwargs), envs_of("Hopper-v5", "sync", **kwargs)
    same_steps(before, going, 17)
    saved = before.state_dict()
    again = envs_of("Hopper-v5", "threads", **kwargs)
    again.step(np.zeros((len(SEEDS), 2, 3), np.float32))
    assert again.load_state_dict(saved) == 0
    assert same_steps(again, going, 90, seed=1) > 6


def test_squares_are_summed_as_numpy_sums_them():
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 7)).astype(np.float32)
    for width in range(1, 8):
        rows = np.ascontiguousarray(actions[:, :width])
        np.testing.assert_array_equal(squares(rows), [np.sum(np.square(row)) for row in rows])


def test_what_threads_cannot_do_is_said_in_one_line():
    def refusal(env: str, *wrappers: str) -> str:
        with pytest.raises(DeeprlError) as error:
            PopulationEnvs(EnvFactory(env, {}, wrappers), [0], 1, "threads")
        return str(error.value)

    have = "HalfCheetah-v5, Hopper-v5, InvertedPendulum-v5, Swimmer-v5, Walker2d-v5"
    assert refusal("CartPole-v1") == f"env_backend threads: CartPole-v1 is none of its tasks; have {have}"
    assert refusal("Hoper-v5").startswith(
        "env_backend threads: Hoper-v5 is none of its tasks; did you mean Hopper-v5?; have"
    )
    assert "wrappers act on steps of one environment (deeprl.envs.repeat:Repeat4)" in refusal(
        "Hopper-v5", "deeprl.envs.repeat:Repeat4"
    )
    with pytest.raises(DeeprlError, match=r"^env_backend: threads makes its environments by name"):
        PopulationEnvs(lambda: gym.make("Hopper-v5"), [0], 1, "threads")
