"""Environments on the device, step by step beside those of Gymnasium; time limits, new episodes, populations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from deeprl.core import rng
from deeprl.envs.device import Now, begin, step
from deeprl.envs.device.classic import (
    Acrobot,
    Arms,
    Car,
    Cart,
    CartPole,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
    Swing,
)
from deeprl.envs.spaces import env_spec

KINDS: dict[str, tuple[Any, Any]] = {
    "CartPole-v1": (CartPole(), Cart),
    "Pendulum-v1": (Pendulum(), Swing),
    "Acrobot-v1": (Acrobot(), Arms),
    "MountainCar-v0": (MountainCar(), Car),
    "MountainCarContinuous-v0": (MountainCarContinuous(), Car),
}
BAR = {"Acrobot-v1": 1e-5}  # of a step from equal states, of the largest number; 2e-6 elsewhere: no four stages there


def of(numbers: Any) -> list[Tensor]:
    return [torch.tensor(float(x)) for x in np.ravel(numbers)]


@pytest.mark.parametrize("name", KINDS)
def test_spec_and_limit_are_those_of_gymnasium(name: str) -> None:
    env = gym.make(name)
    assert KINDS[name][0].spec == env_spec(env)
    assert KINDS[name][0].limit == env.spec.max_episode_steps


@pytest.mark.parametrize("name", KINDS)
def test_each_step_is_that_of_gymnasium_from_the_same_state(name: str) -> None:
    env, (ours, kind) = gym.make(name, max_episode_steps=10_000), KINDS[name]
    draw, ends, bar = np.random.default_rng(0), 0, BAR.get(name, 2e-6)
    env.reset(seed=0)
    base: Any = env.unwrapped
    for t in range(3_000):
        # far states too: near the ends, at the walls, at the highest speeds
        if t % 20 == 0:
            spread = {Cart: [2.4, 3, 0.2, 3], Swing: [9, 8], Arms: [3.1, 3.1, 12, 28], Car: [0.9, 0.07]}[kind]
            state = draw.uniform(-1, 1, len(spread)) * spread + (np.array([-0.3, 0]) if kind is Car else 0)
            env.reset()
            base.state = np.array(state, np.float32 if name == "MountainCarContinuous-v0" else np.float64)
        action = env.action_space.sample() if not ours.spec.discrete else int(draw.integers(ours.spec.actions))
        before = kind(*of(base.state))
        theirs, reward, terminated, _, _ = env.step(action)
        given = torch.as_tensor(action) if ours.spec.discrete else torch.from_numpy(np.asarray(action))
        found = ours.step(before, given, rng.key(0, "env"))
        state = np.ravel(base.state).astype(float)
        if kind is Arms:  # -pi and pi are one
            state[:2] += 2 * np.pi * np.round((np.array([float(x) for x in found.state[:2]]) - state[:2]) / (2 * np.pi))
        scale = np.maximum(1.0, np.abs(state))
        assert np.abs(np.array([float(x) for x in found.state]) - state).max() < bar * scale.max()
        assert np.abs(ours.observe(found.state).numpy() - theirs).max() < bar * scale.max()
        assert abs(float(found.reward) - reward) < 4 * bar * max(1.0, abs(reward))
        assert bool(found.terminated) == terminated
        ends += terminated
        if terminated:
            env.reset()
    assert (ends > 10) == (name != "Pendulum-v1")


@pytest.mark.parametrize("name", KINDS)
def test_fifty_steps_on_its_own_stay_beside_gymnasium(name: str) -> None:
    env, (ours, kind) = gym.make(name), KINDS[name]
    draw = np.random.default_rng(1)
    obs, _ = env.reset(seed=3)
    state: Any = kind(*of(env.unwrapped.state))  # type: ignore[attr-defined]
    for _ in range(50):
        action = env.action_space.sample() if not ours.spec.discrete else int(draw.integers(ours.spec.actions))
        obs, reward, terminated, _, _ = env.step(action)
        found = ours.step(state, torch.as_tensor(np.asarray(action)), rng.key(0, "env"))
        state = found.state
        assert np.abs(ours.observe(state).numpy() - obs).max() < 1e-3
        assert abs(float(found.reward) - reward) < 1e-3
        if terminated:
            assert bool(found.terminated)
            break


@pytest.mark.parametrize("name", KINDS)
def test_episodes_begin_as_gymnasiums_do(name: str) -> None:
    ours = KINDS[name][0]
    keys = torch.stack([rng.fold_in(rng.key(0, "env"), i) for i in range(20_000)])
    found = torch.stack(list(torch.vmap(ours.reset)(keys)), 1).double().numpy()
    env: Any = gym.make(name).unwrapped
    theirs = []
    for seed in range(2_000):
        env.reset(seed=seed)
        theirs.append(np.ravel(env.state).copy())
    theirs_ = np.array(theirs, float)
    spread = theirs_.std(0)
    assert np.abs(found.mean(0) - theirs_.mean(0)).max() < 0.1 * max(spread.max(), 1e-9)
    np.testing.assert_allclose(found.std(0), spread, rtol=0.05, atol=1e-9)
    for edge in ("min", "max"):
        np.testing.assert_allclose(
            getattr(found, edge)(0), getattr(theirs_, edge)(0), atol=0.02 * max(1.0, spread.max())
        )


def played(env: Any, actions: Callable[[int], Tensor], steps: int, seed: int = 0) -> list[Any]:
    now, obs = begin(env, rng.key(seed, "env"))
    found = []
    for t in range(steps):
        found.append((obs, step(env, now, actions(t), rng.key(seed, "env", t + 1))))
        now, obs = found[-1][1].now, found[-1][1].obs
    return found


def test_episodes_end_at_the_limit_and_another_begins_in_the_same_step() -> None:
    found = played(Pendulum(), lambda t: torch.zeros(1), 401)
    ends = [t for t, (_, one) in enumerate(found) if bool(one.truncated)]
    assert ends == [199, 399]
    assert not any(bool(one.terminated) for _, one in found)
    for t, (_, one) in enumerate(found):
        assert bool(one.is_first) == (t in ends)
        assert torch.equal(one.obs, one.next_obs) == (t not in ends)
        assert int(one.now.steps) == (t + 1) % 200
    assert torch.equal(found[200][0], found[199][1].obs)
    assert not torch.equal(found[0][0], found[200][0])  # other starts


def test_a_step_may_end_an_episode_in_both_ways() -> None:
    class Short(MountainCar):
        limit = 1

    now = Now(Car(*of([0.49, 0.06])), torch.zeros((), dtype=torch.int64))
    found = step(Short(), now, torch.tensor(2), rng.key(0, "env"))
    assert bool(found.terminated)
    assert bool(found.truncated)
    assert found.next_obs[0] > 0.5 > found.obs[0]


def test_actions_are_put_between_the_bounds() -> None:
    env = Pendulum()
    now, _ = begin(env, rng.key(0, "env"))
    for given, torque in ((0.5, 1.0), (-1.0, -2.0), (3.0, 2.0)):
        one = step(env, now, torch.tensor([given]), rng.key(0, "env", 1))
        expected = env.step(now.state, torch.tensor([torque]), rng.key(0, "env", 1))
        assert torch.equal(one.reward, expected.reward)


@pytest.mark.parametrize("name", KINDS)
def test_many_are_one_by_one(name: str) -> None:
    env = KINDS[name][0]
    keys = torch.stack([rng.key(seed, "env") for seed in range(5)])
    now, _ = torch.vmap(lambda key: begin(env, key))(keys)
    for t in range(3):
        keys = torch.stack([rng.key(seed, "env", t + 1) for seed in range(5)])
        draw = rng.key(9, "env", t)
        action = (
            rng.randint(draw, (5,), env.spec.actions) if env.spec.discrete else rng.uniform(draw, (5, 1), -1.0, 1.0)
        )
        together = torch.vmap(lambda n, a, k: step(env, n, a, k))(now, action, keys)
        for i in range(5):
            alone = step(env, Now(type(now.state)(*(x[i] for x in now.state)), now.steps[i]), action[i], keys[i])
            torch.testing.assert_close(together.next_obs[i], alone.next_obs, rtol=1e-6, atol=1e-6)
            assert torch.equal(together.obs[i], alone.obs) or not bool(alone.is_first)
        now = together.now
