"""The DeepMind Control Suite as environments: what dm_control gives, repeated, ended, seeded and restored."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dm_control")

from test_records import write_run

from deeprl.core.spec import EnvSpec
from deeprl.envs import make as making
from deeprl.envs.dmc import DMControl, _suite
from deeprl.envs.make import make_env
from deeprl.envs.restorable import Replayed, how_restorable
from deeprl.envs.spaces import env_spec
from deeprl.errors import DeeprlError
from deeprl.reporting.table import results


def actions(env: Any, n: int, seed: int = 0) -> np.ndarray:
    low, high = env.action_space.low, env.action_space.high
    return np.random.RandomState(seed).uniform(low, high, (n, len(low))).astype(np.float32)


def roll(env: Any, n: int, seed: int | None) -> np.ndarray:
    """All that is seen of the first n steps of an episode."""
    seen = [env.reset(seed=seed)[0]]
    for action in actions(env, n):
        obs, reward, terminated, truncated, _ = env.step(action)
        seen += [obs, np.array([reward, terminated, truncated], float)]
    return np.concatenate(seen)


# --- what it observes and does ---


@pytest.mark.parametrize(
    ("name", "obs", "act"),
    [
        ("walker-run", 24, 6),
        ("cheetah-run", 17, 6),
        ("cartpole-swingup", 5, 1),
        ("ball_in_cup-catch", 8, 2),
        ("reacher-hard", 6, 2),
        ("point_mass-easy", 4, 2),
    ],
)
def test_shapes_and_bounds(name: str, obs: int, act: int) -> None:
    env = make_env(f"dmc/{name}")
    spec = env_spec(env)
    assert (spec.obs_shape, spec.action_dim, spec.action_repeat) == ((obs,), act, 1)
    assert (spec.action_low, spec.action_high) == ((-1.0,) * act, (1.0,) * act)
    assert env.reset(seed=0)[0] in env.observation_space


@pytest.mark.parametrize("name", ["walker-run", "reacher-hard", "fish-swim"])
def test_steps_equal_those_of_dm_control(name: str) -> None:
    # The parts in the order of dm_control's own specification; walker and fish have scalars among them.
    domain, _, task = name.partition("-")
    theirs = _suite().load(domain, task, task_kwargs={"random": np.random.RandomState(7)})
    ours = make_env(f"dmc/{name}")

    def flat(observation: Any) -> np.ndarray:
        return np.concatenate([np.ravel(observation[key]) for key in theirs.observation_spec()])

    assert np.array_equal(ours.reset(seed=7)[0], flat(theirs.reset().observation))
    for action in actions(ours, 20):
        obs, reward, terminated, truncated, _ = ours.step(action)
        now = theirs.step(action)
        assert np.array_equal(obs, flat(now.observation))
        assert (reward, terminated, truncated) == (now.reward, False, False)


def test_action_repeat_sums_rewards() -> None:
    once, twice = make_env("dmc/walker-stand"), make_env("dmc/walker-stand", {"action_repeat": 3})
    once.reset(seed=1)
    twice.reset(seed=1)
    for action in actions(once, 5):
        parts = [once.step(action) for _ in range(3)]
        obs, reward, *_ = twice.step(action)
        assert np.array_equal(obs, parts[-1][0])
        assert reward == pytest.approx(sum(p[1] for p in parts), rel=1e-12)
        assert reward > 0
    assert env_spec(twice).action_repeat == 3


@pytest.mark.parametrize(("repeat", "decisions"), [(1, 1000), (2, 500), (3, 334)])
def test_episode_of_a_thousand_simulator_steps_ends_by_its_time_limit(repeat: int, decisions: int) -> None:
    # 333 times three steps and one more
    env = make_env("dmc/cartpole-balance", {"action_repeat": repeat})
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(decisions)]
    assert ends[:-1] == [(False, False)] * (decisions - 1)
    assert ends[-1] == (False, True)  # truncated, not terminated
    env.reset()
    assert env.step(np.zeros(1, np.float32))[2:4] == (False, False)


def test_end_of_a_task_is_a_termination_that_ends_the_repeats() -> None:
    env = DMControl("cartpole-balance", action_repeat=4)
    env.reset(seed=0)
    task, counted = env._env.task, []
    task.get_termination = lambda physics: counted.append(1) or (0.0 if len(counted) == 2 else None)
    _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated, len(counted)) == (True, False, 2)
    assert 0 < reward <= 2


# --- seeds ---


@pytest.mark.parametrize("name", ["walker-run", "ball_in_cup-catch", "lqr-lqr_2_1"])
def test_episode_is_a_function_of_its_seed_alone(name: str) -> None:
    # lqr draws the stiffness of its joints when it is made.
    one, other = make_env(f"dmc/{name}"), make_env(f"dmc/{name}")
    first = roll(one, 10, seed=3)
    assert not np.array_equal(first, roll(one, 10, seed=4))
    one.reset()
    assert np.array_equal(first, roll(one, 10, seed=3))
    assert np.array_equal(first, roll(other, 10, seed=3))
    # and so are the episodes after it
    following = roll(one, 5, seed=None)
    assert np.array_equal(following, roll(other, 5, seed=None))
    assert not np.array_equal(following, first[: len(following)])


def test_lqr_which_has_no_time_limit_is_cut_after_as_many_steps_as_the_others() -> None:
    env = make_env("dmc/lqr-lqr_2_1", {"action_repeat": 10})
    env.reset(seed=0)
    ends = [env.step(np.zeros(env.action_space.shape))[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_environments_without_a_seed_differ() -> None:
    assert not np.array_equal(make_env("dmc/walker-run").reset()[0], make_env("dmc/walker-run").reset()[0])


@pytest.mark.parametrize("name", ["walker-run", "lqr-lqr_2_1"])
def test_training_goes_on_exactly_in_an_environment_made_anew(name: str) -> None:
    env, moves = Replayed(make_env(f"dmc/{name}")), None
    assert how_restorable(make_env(f"dmc/{name}")) == "replayed"
    env.reset(seed=5)
    env.reset()
    moves = actions(env, 12)
    for action in moves[:6]:
        env.step(action)
    state = env.capture()
    other = Replayed(make_env(f"dmc/{name}"))
    other.reset(seed=0)
    other.to_restore = (state, 1)
    assert other.restore() is None  # no new episode
    for action in moves[6:]:
        assert np.array_equal(env.step(action)[0], other.step(action)[0])


# --- names and arguments ---


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dmc/walker-runn", "dmc/walker-run"),
        ("dmc/Walker-Run", "dmc/walker-run"),
        ("dmc/walker_run", "dmc/walker-run"),
        ("dmc/cup-catch", "dmc/ball_in_cup-catch"),
    ],
)
def test_unknown_name_gives_the_nearest(name: str, near: str) -> None:
    with pytest.raises(DeeprlError, match=rf"unknown environment '{name}'; did you mean .*{near}") as raised:
        make_env(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["dmc/", "dmc/zzzz"])
def test_name_unlike_any_other_is_one_line(name: str) -> None:
    with pytest.raises(DeeprlError, match=f"unknown environment '{name}'") as raised:
        make_env(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("repeat", [0, -1])
def test_action_repeat_is_positive(repeat: int) -> None:
    with pytest.raises(DeeprlError, match=f"action_repeat must be a positive whole number, not {repeat}"):
        make_env("dmc/walker-run", {"action_repeat": repeat})


@pytest.mark.parametrize("repeat", [2.0, "2", None])
def test_action_repeat_of_another_type_is_refused(repeat: Any) -> None:
    # In words of the shape checks during tests, and otherwise in those above.
    with pytest.raises(DeeprlError, match=r"dmc/walker-run with arguments .*action_repeat"):
        make_env("dmc/walker-run", {"action_repeat": repeat})


def test_unknown_argument_is_named() -> None:
    with pytest.raises(DeeprlError, match=r"dmc/walker-run .*'action_repeats'"):
        make_env("dmc/walker-run", {"action_repeats": 2})


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name == "dm_control":
            raise ModuleNotFoundError("No module named 'dm_control'", name=name)
        return real(name, *args)

    making._register.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DeeprlError, match=r"dmc/ are not installed; .*pip install 'deeprl\[dmc\]'$"):
        make_env("dmc/walker-run")
    # and setup.cfg knows the extra that the message names
    setup = (Path(__file__).parent.parent / "setup.cfg").read_text()
    assert "\ndmc =\n    dm-control" in setup


def test_rendering_gives_pictures() -> None:
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    from dm_control import suite

    try:
        suite.load("cartpole", "swingup").physics.render(8, 8)
    except Exception as error:  # whatever the missing library of this machine raises
        pytest.skip(f"no OpenGL: {error}")
    env = make_env("dmc/cartpole-swingup", {"size": 48, "action_repeat": 2}, render=True)
    env.reset(seed=0)
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((48, 48, 3), np.uint8)
    assert int(picture.max()) > int(picture.min())
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 50  # 100 steps a second, two of them a decision


# --- benchmark rows ---


def test_rows_count_simulator_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")  # evaluations at steps 100 and 200
    info = json.loads((run / "config.json").read_text())
    assert [r["step"] for r in results(tmp_path) if r["member"] == 0] == [100, 200]
    (run / "config.json").write_text(json.dumps(info | {"spec": {"action_repeat": 2}}))
    assert [r["step"] for r in results(tmp_path) if r["member"] == 0] == [200, 400]
    assert [r["return"] for r in results(tmp_path) if r["member"] == 0] == [100.5, 200.5]


def test_spec_of_older_runs_has_no_repeat() -> None:
    old = {"obs_shape": [3], "action_dim": 1, "action_low": [-1.0], "action_high": [1.0]}
    assert EnvSpec.from_json(old).action_repeat == 1
    assert EnvSpec.from_json(old | {"action_repeat": 4}).action_repeat == 4
    assert env_spec(make_env("Pendulum-v1")).action_repeat == 1
