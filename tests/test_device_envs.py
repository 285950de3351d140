"""Environments on the device, step by step beside those of Gymnasium; time limits, new episodes, populations."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from run_helpers import assert_same_run, rows
from torch import Tensor

import deeprl
from deeprl.core import rng
from deeprl.core.population import Execution
from deeprl.core.spec import EnvSpec
from deeprl.envs.device import Now, Outcome, begin, step
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
from deeprl.envs.device.population import DeviceEnvs
from deeprl.envs.device.registry import device_env, register
from deeprl.envs.device.small import Catch, Falling, Maze, TMaze
from deeprl.envs.make import make_env
from deeprl.envs.spaces import env_spec
from deeprl.envs.state import capture, restore
from deeprl.errors import DeeprlError
from deeprl.run.evaluate import names_time_limit
from deeprl.run.trained import load_population

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


# Far states too: near the ends, at the walls, at the highest speeds. The middle of what is drawn, and how far it goes.
DRAWN: dict[Any, tuple[Any, list[float]]] = {
    Cart: (0, [2.4, 3, 0.2, 3]), Swing: (0, [9, 8]), Arms: (0, [3.1, 3.1, 12, 28]), Car: ([-0.3, 0], [0.9, 0.07])
}  # fmt: skip


class Theirs(NamedTuple):
    """Steps of theirs: the numbers of the states before and after them, what they were given, showed and gave."""

    before: np.ndarray
    action: np.ndarray
    after: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def theirs(name: str, steps: int) -> Theirs:
    """Random actions, from a state that is drawn in each 20th step."""
    env, (ours, kind), draw = gym.make(name, max_episode_steps=10_000), KINDS[name], np.random.default_rng(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    base: Any = env.unwrapped
    (middle, spread), found = DRAWN[kind], []
    for t in range(steps):
        if t % 20 == 0:
            env.reset()
            state = middle + draw.uniform(-1, 1, len(spread)) * spread
            base.state = state.astype(np.float32 if name == "MountainCarContinuous-v0" else np.float64)
        action = env.action_space.sample() if not ours.spec.discrete else int(draw.integers(ours.spec.actions))
        before = np.ravel(base.state).astype(float)
        obs, reward, terminated, _, _ = env.step(action)
        found.append((before, action, np.ravel(base.state).astype(float), obs, float(reward), terminated))
        if terminated:
            env.reset()
    return Theirs(*(np.array(column) for column in zip(*found, strict=True)))


@pytest.mark.parametrize("name", KINDS)
def test_each_step_is_that_of_gymnasium_from_the_same_state(name: str) -> None:
    (ours, kind), bar, them = KINDS[name], BAR.get(name, 2e-6), theirs(name, 3_000)
    before = kind(*torch.from_numpy(them.before.astype(np.float32)).unbind(1))
    found = torch.vmap(lambda s, a: ours.step(s, a, rng.key(0, "env")))(before, torch.from_numpy(them.action))
    ended, state = torch.stack(list(found.state), 1).double().numpy(), them.after.copy()
    if kind is Arms:  # -pi and pi are one
        state[:, :2] += 2 * np.pi * np.round((ended[:, :2] - state[:, :2]) / (2 * np.pi))
    scale = np.maximum(1.0, np.abs(state)).max(1)
    assert (np.abs(ended - state).max(1) < bar * scale).all()
    assert (np.abs(torch.vmap(ours.observe)(found.state).numpy() - them.obs).max(1) < bar * scale).all()
    assert (np.abs(found.reward.numpy() - them.reward) < 4 * bar * np.maximum(1.0, np.abs(them.reward))).all()
    assert np.array_equal(found.terminated.numpy(), them.terminated)
    assert (them.terminated.sum() > 10) == (name != "Pendulum-v1")


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
    keys = torch.vmap(lambda i: rng.fold_in(rng.key(0, "env"), i))(torch.arange(20_000))
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
    now = now._replace(steps=now.steps + torch.tensor([0, env.limit - 2, 0, env.limit - 1, 0]))
    firsts = []
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
            torch.testing.assert_close(together.obs[i], alone.obs, rtol=1e-6, atol=1e-6)
            assert bool(together.is_first[i]) == bool(alone.is_first)
        firsts.append(together.is_first.tolist())
        now = together.now
    assert firsts == [[False, False, False, True, False], [False, True, False, False, False], [False] * 5]


# --- small tasks ---


def walked(env: Any, state: Any, actions: list[int]) -> tuple[list[list[float]], list[float], list[bool]]:
    seen, rewards, ends = [], [], []
    for action in actions:
        found = env.step(state, torch.tensor(action), rng.key(0, "env"))
        state = found.state
        seen.append(env.observe(state).tolist())
        rewards.append(float(found.reward))
        ends.append(bool(found.terminated))
    return seen, rewards, ends


def test_catch_by_hand() -> None:
    env = Catch((4, 3))
    state = Falling(*(torch.tensor(x) for x in (0, 2, 1)))
    seen, rewards, ends = walked(env, state, [2, 2, 1])
    board = np.array(seen).reshape(3, 4, 3)
    assert [np.argwhere(one).tolist() for one in board] == [[[1, 2], [3, 2]], [[2, 2], [3, 2]], [[3, 2]]]
    assert (rewards, ends) == ([0.0, 0.0, 1.0], [False, False, True])
    assert walked(env, state, [0, 0, 1])[1] == [0.0, 0.0, -1.0]
    picture = Catch((4, 3), pixels=True).observe(state)
    assert (picture.dtype, picture.shape) == (torch.uint8, (4, 3, 3))
    assert picture.nonzero().tolist() == [[0, 2, 0], [3, 1, 2]]
    starts = {int(env.reset(rng.key(seed, "env")).column) for seed in range(40)}
    assert starts == {0, 1, 2}
    with pytest.raises(ValueError, match="at least 2 rows"):
        Catch((1, 5))


def test_t_maze_by_hand() -> None:
    zero = torch.tensor(0)
    passive, active = TMaze(2), TMaze(2, active=True, penalty=-0.5)
    state = Maze(zero, zero, torch.tensor(-1), zero, zero)
    assert passive.observe(state).tolist() == [0.0, -1.0]
    assert walked(passive, state, [0, 0, 3]) == ([[0, 0], [1, 0], [1, -1]], [0.0, 0.0, 1.0], [False, False, True])
    assert walked(passive, state, [0, 0, 1])[1] == [0.0, 0.0, 0.0]
    assert walked(passive, state, [1, 0, 0])[0] == [[0, 0], [0, 0], [1, 0]]  # a wall; it is shown once
    begun = active.reset(rng.key(3, "env"))
    assert [int(x) for x in begun[:2]] == [1, 0]
    assert active.observe(begun).tolist() == [0.0, 0.0]
    goal = int(begun.goal)
    seen, rewards, ends = walked(active, begun, [2, 0, 0, 0, 1 if goal == 1 else 3])
    assert seen == [[0, goal], [0, 0], [0, 0], [1, 0], [1, goal]]
    assert rewards == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert walked(active, begun, [2, 2, 0, 0, 0])[1] == [0.0, -0.5, -0.5, -0.5, 0.0]  # a step too late all the way
    assert ends == [False] * 4 + [True]
    assert {int(passive.reset(rng.key(seed, "env")).goal) for seed in range(20)} == {-1, 1}
    with pytest.raises(ValueError, match="length: at least 1"):
        TMaze(0)


# --- the same for Gymnasium ---


@pytest.mark.parametrize("name", ["Catch-v0", "TMaze-v0"])
def test_gymnasium_has_what_it_does_not_know_itself(name: str) -> None:
    env = gym.make(name)
    check_env(env.unwrapped, skip_render_check=True)
    assert env_spec(env) == device_env(name)[0].spec
    assert names_time_limit(env)
    alike = []
    for _ in range(2):
        frames = [env.reset(seed=5)[0]]
        for t in range(30):
            obs, _, over, _, _ = env.step(t % 3)
            frames.append(env.reset()[0] if over else obs)
        alike.append(np.stack(frames))
    assert np.array_equal(*alike)
    state = capture(env)
    assert state is not None
    after = [env.step(1)[0].tolist() for _ in range(3)]
    restore(env, state)
    assert [env.step(1)[0].tolist() for _ in range(3)] == after


class Corridor:
    """A user's own: walk to the right end; the state is a tensor."""

    spec = EnvSpec((1,), 1, (-0.5,), (0.5,))

    def __init__(self, end: float = 1.0, limit: int = 6):
        self.end, self.limit = end, limit

    def reset(self, key: Tensor) -> Tensor:
        return rng.uniform(key, (1,), 0.0, 0.1)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, key: Tensor) -> Outcome:
        after = state + action
        return Outcome(after, action[0], after[0] > self.end)


def length_of(kwargs: dict[str, Any]) -> int:
    """Steps of an episode that does not end by itself, as evaluations play it."""
    env = make_env("DeviceCorridor-v0", {"end": 100.0} | kwargs)
    env.reset(seed=0)
    return next(t for t in range(1, 20) if env.step(np.zeros(1, np.float64))[3])


def test_own_environments_are_registered_by_name() -> None:
    register("DeviceCorridor-v0", Corridor)
    assert device_env("test_device_envs:DeviceCorridor-v0", {"end": 2.0, "max_episode_steps": 9})[1] == 9
    assert device_env("DeviceCorridor-v0", {"max_episode_steps": -1})[1] == 0
    assert [length_of(kwargs) for kwargs in ({}, {"limit": 3}, {"limit": 3, "max_episode_steps": 8})] == [6, 3, 8]
    env = gym.make("DeviceCorridor-v0", end=0.6)
    obs, _ = env.reset(seed=0)
    after, reward, terminated, truncated, _ = env.step(np.array([0.5], np.float32))
    assert after == pytest.approx(obs + 0.5)
    assert (reward, terminated, truncated) == (0.5, bool(after > 0.6), False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"env": "HalfCheetah-v5"},
            r"env_backend device: HalfCheetah-v5 has no form on the device; have .*CartPole-v1",
        ),
        ({"env": "Pendulum-v0"}, r"Pendulum-v0 has no form on the device; did you mean Pendulum-v1\?"),
        ({"env": "Pendulum-v1", "env_kwargs": {"g": 9.0}}, "Pendulum-v1 on the device: .*argument"),
        ({"env": "nowhere_at_all:X-v0"}, "X-v0 has no form on the device"),
        (
            {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 0}},
            "must be a positive whole number, or -1 for no",
        ),
        (
            {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": "abc"}},
            "must be a positive whole number, .* 'abc'",
        ),
        ({"env": "Pendulum-v1", "wrappers": ("a:B",)}, r"env_backend device: wrappers act .* \(a:B\); use sync"),
    ],
)
def test_wrong_input(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match=message):
        deeprl.train("sac", env_backend="device", steps=20, learning_starts=10, out=str(tmp_path / "a"), **settings)
    assert not (tmp_path / "a").exists()


# --- runs ---


RUN: dict[str, Any] = {
    "env_backend": "device", "env_kwargs": {"max_episode_steps": 15}, "steps": 44, "learning_starts": 20,
    "batch_size": 8, "compile": "off", "tensorboard": False, "threads": 1, "eval_every": 24, "eval_episodes": 1,
    "log_every": 20, "buffer_size": 50, "envs_per_agent": 2, "seeds": (3, 4),
}  # fmt: skip
AGENTS: dict[str, dict[str, Any]] = {
    "sac": {"env": "Pendulum-v1", "hidden": (8,), "normalize_obs": True},
    "dqn": {"env": "CartPole-v1", "hidden": (8,), "train_every": 2, "target_every": 10},
    "srl": {"env": "Pendulum-v1", "hidden": (8,), "units": 8, "critic_hidden": (8,), "model_hidden": (8,)},
    "dqn planes": {"env": "MinAtar/Breakout-v1", "hidden": (8,), "env_kwargs": {}},
    "dqn pixels": {"env": "Catch-v0", "hidden": (8,), "env_kwargs": {"pixels": True, "size": [16, 16]}},
}


def trained(algorithm: str, out: Path, **settings: Any) -> Path:
    return deeprl.train(algorithm.partition(" ")[0], out=str(out), **(RUN | AGENTS[algorithm] | settings)).directory


@pytest.mark.parametrize("algorithm", AGENTS)
def test_runs_are_resumed_exactly(algorithm: str, tmp_path: Path) -> None:
    if "MinAtar" in AGENTS[algorithm]["env"]:
        pytest.importorskip("minatar")  # for evaluations
    whole = trained(algorithm, tmp_path / "a")
    for stop in (14, 26, 40):
        trained(algorithm, tmp_path / "b", callback=lambda run, stop=stop: run.step == stop)
    assert_same_run(whole, trained(algorithm, tmp_path / "b"))
    lengths = [float(row["train/length"]) for row in rows(whole / "metrics.csv") if row["train/length"] != "nan"]
    assert lengths
    assert max(lengths) <= (60 if "planes" in algorithm else 15)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_agents_of_a_population_are_those_alone(backend: str, tmp_path: Path) -> None:
    both = trained("sac", tmp_path / "a", backend=backend)
    alone = trained("sac", tmp_path / "b", backend=backend, seeds=(4,))
    ours, theirs = (load_population(d).state.actor for d in (both, alone))
    for name, value in theirs.items():
        if backend == "loop":
            assert torch.equal(ours[name][1], value[0])
        else:
            torch.testing.assert_close(ours[name][1], value[0], rtol=1e-3, atol=1e-5)


def test_what_is_stored_is_one_way_through_the_environment(tmp_path: Path) -> None:
    data: list[Any] = []

    def look(run: Any) -> bool:
        data[:] = [run._attached["replay"].data]
        return run.step == 48

    trained("sac", tmp_path / "a", steps=60, callback=look)
    env, stored = Pendulum(), data[0]
    for row in range(0, 46):
        obs, action, after = (getattr(stored, k)[1, row] for k in ("obs", "action", "next_obs"))
        assert bool(stored.truncated[1, row]) == (row // 2 % 15 == 14)
        if not stored.truncated[1, row]:
            assert torch.equal(stored.obs[1, row + 2], after)
        state = Swing(torch.atan2(obs[1], obs[0]), obs[2])
        found = env.step(state, 2.0 * action, rng.key(0, "env"))
        torch.testing.assert_close(env.observe(found.state), after, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stored.reward[1, row], found.reward, rtol=1e-4, atol=1e-4)


def test_example_of_the_docs_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "environments.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reach.py").write_text(code)
    few = RUN | {"hidden": (8,), "env_kwargs": {}, "steps": 40}
    run = deeprl.train("sac", env="my_reach:DeviceReach-v0", out=str(tmp_path / "a"), **few)
    assert len(rows(run.directory / "evaluations.csv")) == 4  # two agents, at 30 and at the end


class Drift:
    """Its state, which is what is seen and earned, goes on unchanged: begins anywhere, ends at the limit."""

    spec = EnvSpec((1,), 1, (-1.0,), (1.0,))
    limit = 3

    def reset(self, key: Tensor) -> Tensor:
        return rng.uniform(key, (1,))

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, key: Tensor) -> Outcome:
        return Outcome(state, state[0], torch.zeros((), dtype=torch.bool))


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_environments_of_an_agent_draw_apart_and_successors_are_those_before_a_new_episode(backend: Any) -> None:
    envs = DeviceEnvs(Drift(), 3, (5, 6), 2, Execution(backend))
    starts, returns = [envs.obs.flatten().tolist()], torch.zeros(2, 2)
    for t in range(9):
        obs = envs.obs.clone()
        found = envs.step(torch.zeros(2, 2, 1))
        assert torch.equal(found.obs, obs)
        assert torch.equal(found.next_obs, obs)  # also at the time limit, after which there is another
        assert torch.equal(found.reward, obs[..., 0])
        assert torch.equal(envs.is_first, found.truncated)
        returns += found.reward
        if t % 3 == 2:
            starts.append(envs.obs.flatten().tolist())
        if t == 6:  # of two episodes that have ended in each environment
            told, expected = envs.pop_episodes(), (returns - found.reward).sum(1) / 4
            assert [(e.member, e.length) for e in told] == [(0, 3)] * 4 + [(1, 3)] * 4
            assert [e.ret for e in told] == pytest.approx([x for x in expected.tolist() for _ in range(4)])
            assert envs.pop_episodes() == []
    assert len({x for start in starts for x in start}) == 16
