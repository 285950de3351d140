"""MuJoCo Warp on the CPU, where the extra `warp` is installed; the first time it compiles for a minute."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_helpers import assert_same_run

import deeprl
from deeprl.core.population import Execution
from deeprl.envs.make import EnvFactory
from deeprl.envs.mujoco.warp import WarpEnvs
from deeprl.errors import DeeprlError

pytest.importorskip("mujoco_warp")


def envs_of(env: str, seeds: list[int], width: int = 2, **kwargs: Any) -> WarpEnvs:
    return WarpEnvs(EnvFactory(env, kwargs, ()), seeds, width, Execution())


def actions(envs: WarpEnvs, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.uniform(-1, 1, (envs.agents, envs.width, envs.spec.action_dim)).astype(np.float32))


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5", "Swimmer-v5", "Walker2d-v5"])
def test_each_step_is_gymnasiums_to_rounding(env):
    """From the same positions and velocities, its warm start at rest in both."""
    envs, reference = envs_of(env, [1, 2]), gym.make(env).unwrapped
    reference.reset(seed=0)
    for number in range(12):
        before, action = [x.clone() for x in envs.worlds[:2]], actions(envs, number)
        envs.worlds.warm.zero_()
        found = envs.step(action)
        for m, e in np.ndindex(2, 2):
            reference.reset(seed=0)
            reference.set_state(*(x[m, e].double().numpy() for x in before))
            reference.data.qacc_warmstart[:] = 0.0
            low, high = reference.action_space.low, reference.action_space.high
            obs, reward, terminated, _, _ = reference.step(low + (action[m, e].numpy() + 1) / 2 * (high - low))
            np.testing.assert_allclose(found.next_obs[m, e], obs, rtol=2e-3, atol=2e-3)
            assert float(found.reward[m, e]) == pytest.approx(reward, rel=2e-3, abs=2e-3)
            assert bool(found.terminated[m, e]) == terminated


def test_episodes_begin_where_gymnasiums_do():
    envs, reference = envs_of("HalfCheetah-v5", list(range(40)), 50), gym.make("HalfCheetah-v5").unwrapped
    noise = reference._reset_noise_scale
    positions = (envs.worlds.qpos - torch.tensor(reference.init_qpos)).flatten(0, 1)
    velocities = (envs.worlds.qvel - torch.tensor(reference.init_qvel)).flatten(0, 1)
    assert float(positions.abs().max()) <= noise
    torch.testing.assert_close(positions.std(0), torch.full((9,), noise / 3**0.5).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(velocities.std(0), torch.full((9,), noise).double(), rtol=0.05, atol=0)
    assert float(torch.corrcoef(positions.T).fill_diagonal_(0).abs().max()) < 0.1


def test_a_time_limit_cuts_and_the_next_episode_begins_at_once():
    envs = envs_of("Swimmer-v5", [3, 4], max_episode_steps=5)
    for number in range(1, 11):
        before, found = envs.obs.clone(), envs.step(actions(envs, number))
        torch.testing.assert_close(found.obs, before, rtol=0, atol=0)
        assert bool((found.truncated == (number % 5 == 0)).all())
        assert not bool(found.terminated.any())
        assert bool((envs.obs == found.next_obs).all()) == (number % 5 != 0)
    assert [(e.member, e.length) for e in envs.pop_episodes()] == [(0, 5)] * 4 + [(1, 5)] * 4
    assert envs.pop_episodes() == []


def test_an_environment_that_is_not_finite_begins_anew():
    envs = envs_of("Hopper-v5", [3, 4])
    envs.worlds.qvel[1, 0] = torch.nan
    seen = envs.obs.clone()
    found = envs.step(actions(envs, 0))
    assert found.truncated.tolist() == [[False, False], [True, False]]
    assert float(found.reward[1, 0]) == 0.0
    torch.testing.assert_close(found.next_obs[1, 0], seen[1, 0])
    assert bool(envs.obs.isfinite().all())
    assert bool(envs.step(actions(envs, 1)).next_obs.isfinite().all())


def test_an_agents_environments_do_not_depend_on_the_others():
    both, alone = envs_of("Hopper-v5", [3, 4]), envs_of("Hopper-v5", [4])
    for number in range(40):
        action = actions(both, number)
        theirs, its = both.step(action), alone.step(action[1:])
        for a, b in zip(theirs, its, strict=True):
            torch.testing.assert_close(a[1], b[0], rtol=0, atol=0)


def test_a_run_goes_on_exactly(tmp_path):
    settings: dict[str, Any] = {
        "env": "Hopper-v5", "env_backend": "warp", "steps": 80, "learning_starts": 20, "batch_size": 8, "hidden": (8,),
        "seeds": (1, 2), "eval_every": 40, "eval_episodes": 1, "log_every": 20, "threads": 1, "compile": "off",
        "envs_per_agent": 2, "tensorboard": False,
    }  # fmt: skip
    whole = deeprl.train("sac", out=str(tmp_path / "whole"), **settings).directory
    stop = lambda run: run.step >= 46  # noqa: E731
    deeprl.train("sac", out=str(tmp_path / "parts"), callback=stop, **settings)
    parts = deeprl.train("sac", out=str(tmp_path / "parts"), **settings).directory
    assert_same_run(whole, parts)


def test_what_it_cannot_do_is_said_in_one_line():
    with pytest.raises(DeeprlError, match=r"^env_backend warp: Ant-v5 is none of its tasks; have HalfCheetah-v5"):
        envs_of("Ant-v5", [0])
    with pytest.raises(DeeprlError, match=r"^env_backend warp: wrappers act on environments of Gymnasium \(a:B\)"):
        WarpEnvs(EnvFactory("Hopper-v5", {}, ("a:B",)), [0], 1, Execution())


def test_a_dry_run_counts_what_agents_need():
    settings: dict[str, Any] = {"env": "Hopper-v5", "steps": 3000, "learning_starts": 100, "hidden": (8,)}
    found = [deeprl.dry_run("sac", env_backend=backend, **settings) for backend in ("warp", "sync")]
    assert found[0] == found[1]
