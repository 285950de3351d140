"""The short look at an environment: what is constant in the data and not there; that it never stands in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from offline_helpers import made
from recordings import write

import deeprl
from deeprl.commands.main import main
from deeprl.data import compare
from deeprl.data.compare import constant_columns, differences
from deeprl.data.datasets import load_dataset

SHOWN = "constant in the dataset, but not in Shown (or another number there), so that policies know nothing of them: "


class Shown(gym.Env):
    """Six numbers: 0 for ever; 1 for ever; the step; the start, by its seed; the action; 7 from the 20th step on."""

    observation_space = gym.spaces.Box(np.float32([-9, 1, -99, -99, -1, -9]), np.float32([9, 1, 99, 99, 1, 9]))
    action_space = gym.spaces.Box(-1, 1, (1,))
    steps, failing_at = 0, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.start, self.now = float(seed or 0), 0
        return self.shown(0.0), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.now += 1
        self.steps += 1
        if self.steps == self.failing_at:
            raise ValueError("broken")
        return self.shown(float(action[0])), 0.0, False, False, {}

    def shown(self, action: float) -> np.ndarray:
        return np.array([0, 1, self.now, self.start, action, 7 * (self.now >= 20)], np.float32)


def rows(*held: float, count: int = 3) -> np.ndarray:
    """Rows of the same numbers."""
    return np.tile(np.float32(held), (count, 1))


def test_constant_columns_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_ROWS", 2)
    obs = np.float32([[1, 5, 0], [1, 5, 0], [1, 5, 3], [1, 6, 0]])
    assert constant_columns(obs).tolist() == [0]


def test_what_is_constant_in_the_data_alone_is_told() -> None:
    assert differences(rows(0, 1, 0, 0, 0, 0), Shown(), "Shown") == [f"observations that are {SHOWN}2, 3, 4, 5"]


def test_another_constant_is_told_and_rounding_is_not() -> None:
    obs = rows(4, 1.000001, 0, 0, 0, 0)
    obs[:, 2:] = np.arange(12).reshape(3, 4)
    assert differences(obs, Shown(), "Shown") == [f"observations that are {SHOWN}0"]


def test_what_varies_where_the_space_has_one_value_is_told() -> None:
    obs = np.arange(18, dtype=np.float32).reshape(3, 6)
    env = Shown()
    assert differences(obs, env, "Shown") == ["observations that vary in the dataset, but are constant in Shown: 1"]
    assert env.steps == 0  # no column is constant: there is nothing to look for


def test_a_single_row_is_not_compared() -> None:
    assert differences(rows(0, 0, 0, 0, 0, 0, count=1), Shown(), "Shown") == []


def test_the_look_is_short_and_always_the_same() -> None:
    first, second = Shown(), Shown()
    found = [compare._look(env) for env in (first, second)]
    np.testing.assert_array_equal(*found)
    assert first.steps == 300
    assert set(found[0][:, 3]) == set(range(10))


def test_the_look_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_SECONDS", 0.0)
    assert len(compare._look(Shown())) == 1


def test_an_environment_that_fails_is_left_to_those_who_need_it() -> None:
    env = Shown()
    env.failing_at = 3
    assert differences(rows(0, 0, 0, 0, 0, 0), env, "Shown") == []


def test_training_and_info_tell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arrays = made()
    arrays["observations"][:, 1] = arrays["next_observations"][:, 1] = 0.25
    path = write(tmp_path / "held.npz", arrays)
    env = "offline_helpers:MadeLinear-v0"
    line = (
        f"constant in the dataset, but not in {env} (or another number there), so that policies know nothing of them: 1"
    )
    assert any(line in note for note in load_dataset(path, env).notes)
    settings: dict[str, Any] = {"batch_size": 4, "hidden": [4], "compile": "off", "threads": 1, "eval_episodes": 1}
    deeprl.train("bc", dataset=path, env=env, steps=2, out=str(tmp_path / "run"), **settings)
    assert capfd.readouterr().out.count(line) == 1
    assert main(["dataset", "info", path, "--env", env]) == 0
    assert f"- observations that are {line}\n" in capfd.readouterr().out
    assert load_dataset(path, env, outline=True).notes == ()
