"""Episodes without an end, and evaluations that are stopped before theirs."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from run_helpers import assert_same_run, config
from torch import Tensor

from deeprl.envs.make import EnvFactory, make_env
from deeprl.online import sac
from deeprl.run import evaluate
from deeprl.run.evaluate import Evaluator, StoppedError, names_time_limit


class Endless(gym.Env):
    """Reward 1 for ever; with `last`, a termination after so many steps."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, last: int = 0):
        self.last = last

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t == self.last, False, {}


class Bell(gym.Wrapper):
    """Sends this process SIGTERM at one of the steps that all environments take together."""

    rings_at, steps = 0, 0

    def step(self, action: Any) -> Any:
        Bell.steps += 1
        if Bell.steps == Bell.rings_at:
            signal.raise_signal(signal.SIGTERM)
        return self.env.step(action)


gym.register("Endless-v0", entry_point=Endless)


def still(obs: np.ndarray, is_first: np.ndarray, keys: Tensor) -> np.ndarray:
    return np.zeros((*obs.shape[:2], 1), np.float32)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(evaluate, "LONGEST", 50)
    return 50


@pytest.mark.parametrize(
    ("env", "kwargs", "limited"),
    [
        ("Pendulum-v1", {}, True),
        ("test_endless:Endless-v0", {}, False),
        ("test_endless:Endless-v0", {"last": 7}, False),  # nothing tells that it ends
        ("test_endless:Endless-v0", {"max_episode_steps": 9}, True),
        ("MinAtar/Seaquest-v1", {}, False),
        ("dmc/cartpole-swingup", {}, True),
        ("ALE/Pong-v5", {}, True),
        ("ALE/Pong-v5", {"max_num_frames_per_episode": 0}, False),
    ],
)
def test_whether_an_environment_names_a_time_limit(env: str, kwargs: dict[str, Any], limited: bool) -> None:
    made = make_env(env, kwargs)
    assert names_time_limit(made) == limited
    made.close()


def test_a_limit_inside_other_wrappers_is_found() -> None:
    inner = gym.wrappers.TimeLimit(Endless(), 5)
    assert names_time_limit(gym.wrappers.ClipAction(inner))
    assert not names_time_limit(gym.wrappers.ClipAction(Endless()))


def test_episodes_without_an_end_are_cut_and_told(short: int) -> None:
    evaluator = Evaluator(Endless, [0, 1], 2)
    assert [(e.ret, e.length) for e in evaluator(still)] == [(50.0, 50)] * 4
    assert evaluator.cut == (
        "evaluation episodes cut after 50 steps, as no time limit is named: 4 of 4; another limit: --env-kwargs"
        """ '{"max_episode_steps": 1000}'"""
    )
    ends = Evaluator(lambda: Endless(20), [0], 2)
    assert ([e.length for e in ends(still)], ends.cut) == ([20, 20], "")


def test_a_limit_that_is_named_counts_however_long(short: int) -> None:
    evaluator = Evaluator(EnvFactory("test_endless:Endless-v0", {"max_episode_steps": 70}, ()), [0], 1)
    assert ([e.length for e in evaluator(still)], evaluator.cut) == ([70], "")


def test_an_evaluation_tells_how_far_it_is_and_stops_when_asked(short: int) -> None:
    told: list[tuple[int, int]] = []
    with pytest.raises(StoppedError):
        Evaluator(Endless, [0], 1)(still, 0, lambda n, t: told.append((n, t)), lambda: len(told) == 3)
    assert told == [(0, 1), (0, 2), (0, 3)]


def test_a_run_says_at_its_start_that_there_is_no_limit_and_ends(
    short: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"steps": 40, "eval_every": 0, "env": "test_endless:Endless-v0", "env_kwargs": {}}
    run = sac.train(config(tmp_path / "run", **few))
    said = capsys.readouterr().out.splitlines()
    assert run.finished
    assert said[0] == "test_endless:Endless-v0 names no time limit: evaluation episodes are cut after 50 steps"
    assert any(line.startswith("evaluation episodes cut after 50 steps") for line in said)
    assert [row["length"] for row in evaluations(tmp_path / "run")] == ["50", "50"]


def evaluations(directory: Path) -> list[dict[str, str]]:
    if not (directory / "evaluations.csv").exists():
        return []
    with (directory / "evaluations.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


@pytest.fixture
def default_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


# Episodes of 25 steps, two at a time: the evaluation at step 40 takes the environments' steps 41 to 90, that at the
# end, step 60, the steps 111 to 160.
@pytest.mark.parametrize(("rings_at", "step"), [(60, 40), (130, 60)])
def test_a_signal_ends_an_evaluation_and_the_next_session_begins_with_it(
    rings_at: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_signals: None
) -> None:
    own = {"steps": 60, "wrappers": ("test_endless:Bell",)}
    monkeypatch.setattr("test_endless.Bell.rings_at", 0)
    sac.train(config(tmp_path / "whole", **own))
    monkeypatch.setattr("test_endless.Bell.steps", 0)
    monkeypatch.setattr("test_endless.Bell.rings_at", rings_at)
    cut = config(tmp_path / "cut", **own)
    with pytest.raises(SystemExit) as end:
        sac.train(cut)
    assert end.value.code == 128 + signal.SIGTERM
    status = json.loads((tmp_path / "cut/status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", step)
    assert {row["step"] for row in evaluations(tmp_path / "cut")} == ({"40"} if step == 60 else set())
    assert sac.train(cut).finished
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
