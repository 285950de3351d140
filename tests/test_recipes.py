"""Recipes: published settings under a name, in Python, on the command line and in sweeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deeprl
from deeprl import api
from deeprl.commands import main as cli
from deeprl.config import build
from deeprl.data.offline import OfflineConfig
from deeprl.errors import DeeprlError
from deeprl.launch.sweep import read_sweep
from deeprl.recipes import RECIPES, discount_of, with_recipe
from deeprl.run.trained import algorithm_module

NAMES = [(algorithm, name) for algorithm, recipes in RECIPES.items() for name in recipes]


@pytest.mark.parametrize(
    ("steps", "repeat", "discount"),
    [
        (1000, 2, 0.99),  # the DeepMind Control Suite: (100 - 1) / 100
        (1000, 1, 0.995),  # Gymnasium's MuJoCo tasks: (200 - 1) / 200, at the upper end
        (100, 2, 0.95),  # MyoSuite: 9 / 10, below the lower end
        (3000, 1, 0.995),
    ],
)
def test_discount_by_hand(steps: int, repeat: int, discount: float) -> None:
    assert discount_of(steps, repeat) == pytest.approx(discount)


@pytest.mark.parametrize(("algorithm", "name"), NAMES)
def test_every_recipe_is_a_valid_configuration_with_a_source(algorithm: str, name: str) -> None:
    recipe = RECIPES[algorithm][name]
    kind = algorithm_module(algorithm).Config
    data = {"dataset": "any.hdf5"} if issubclass(kind, OfflineConfig) else {}
    config = build(kind, data | recipe.settings)
    assert {k: getattr(config, k) for k in recipe.settings} == recipe.settings
    assert "arXiv" in recipe.source
    assert algorithm in deeprl.ALGORITHMS


DMC = {"env_kwargs": {"action_repeat": 2}, "steps": 500_000, "utd": 2.0, "learning_starts": 5_000, "discount": 0.99}
MUJOCO = {"env_kwargs": {}, "steps": 1_000_000, "utd": 2.0, "learning_starts": 5_000, "discount": 0.995, "critics": 2}


@pytest.mark.parametrize(
    ("algorithm", "name", "published"),
    [
        ("simba", "dmc", DMC | {"critics": 1, "weight_decay": 0.01, "init_alpha": 0.01, "actor_lr": 1e-4}),
        ("simba", "mujoco", MUJOCO | {"weight_decay": 0.01, "tau": 0.005, "batch_size": 256}),
        ("simba_v2", "dmc", DMC | {"critics": 1, "lr_horizon": 500_000, "bins": 101, "value_bound": 5.0}),
        ("simba_v2", "mujoco", MUJOCO | {"lr_horizon": 1_000_000, "final_lr_share": 0.5, "tau": 0.005}),
        ("sac", "dmc", DMC | {"critics": 2, "log_std": "tanh", "log_std_range": (-10.0, 2.0)}),
        ("iql", "antmaze", {"expectile": 0.9, "temperature": 10.0, "rewards": "minus-one", "dropout": 0.0}),
        ("iql", "mujoco", {"expectile": 0.7, "temperature": 3.0, "rewards": "return-range", "dropout": 0.0}),
        ("iql", "adroit", {"expectile": 0.7, "temperature": 0.5, "rewards": "as-is", "dropout": 0.1}),
    ],
)
def test_recipes_are_as_published(algorithm: str, name: str, published: dict[str, Any]) -> None:
    config = build(algorithm_module(algorithm).Config, with_recipe(algorithm, {"recipe": name}))
    assert {key: getattr(config, key) for key in published} == published


def test_settings_beside_a_recipe_count_more() -> None:
    assert with_recipe("simba", {"recipe": "dmc", "utd": 1.0})["utd"] == 1.0
    assert with_recipe("td3", {"utd": 1.0}) == {"utd": 1.0}
    for named, kwargs in (({"camera": 1}, {"action_repeat": 2, "camera": 1}), ({"action_repeat": 1},) * 2, ({}, {})):
        assert with_recipe("simba", {"recipe": "dmc", "env_kwargs": named})["env_kwargs"] == kwargs


def test_command_line_keeps_a_recipes_arguments_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("deeprl.online.simba.train", lambda config: seen.append(config) or SimpleNamespace(finished=1))
    monkeypatch.setattr("deeprl.commands.train.trained", lambda run: 0)
    assert cli.main(["train", "simba", "--recipe", "dmc", "--env-kwargs", '{"camera": 1}']) == 0
    assert seen[0].env_kwargs == {"action_repeat": 2, "camera": 1}
    assert cli.main(["train", "simba", "--recipe", "dmc", "--env", "Pendulum-v1", "--env-kwargs", "{}"]) == 0
    assert seen[1].env_kwargs == {}
    with pytest.raises(DeeprlError, match=r"^env_kwargs: expected"):
        api.train("simba", recipe="dmc", env_kwargs=3)


@pytest.mark.parametrize(
    ("algorithm", "name", "text"),
    [("simba", "dmcc", "did you mean dmc"), ("td3", "dmc", "td3 has none"), ("sac", 3, "unknown recipe 3")],
)
def test_unknown_recipes_are_named(algorithm: str, name: str, text: str) -> None:
    with pytest.raises(DeeprlError, match=text):
        with_recipe(algorithm, {"recipe": name})
    with pytest.raises(DeeprlError, match=text):
        api.train(algorithm, recipe=name)


def test_command_line_takes_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "simba_v2", "--recipe", "mujoco", "--env", "Pendulum-v1", "--seeds", "0-1", "--dry-run"]
    assert cli.main(words) == 0
    assert "simba_v2 Pendulum-v1: 2 agents" in capsys.readouterr().out
    assert cli.main(["train", "simba", "--recipe", "dmcc"]) == 2
    assert "did you mean dmc" in capsys.readouterr().err
    assert cli.main(["list"]) == 0
    assert "recipes: dmc, mujoco" in capsys.readouterr().out


def test_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "simba", "--help"])
    assert "SonyResearch/simba" in capsys.readouterr().out.replace("\n", " ")


def test_sweep_takes_a_recipe(tmp_path: Path) -> None:
    text = """
[[experiment]]
algorithm = ["simba", "simba_v2"]
env = "Pendulum-v1"
recipe = "mujoco"
seeds = "0-1"

[experiment.grid]
utd = [1.0, 4.0]
"""
    (tmp_path / "s.toml").write_text(text)
    plan = read_sweep(tmp_path / "s.toml")[1]
    assert [(p.algorithm, p.config.utd, p.config.discount) for p in plan] == [
        ("simba", 1.0, 0.995), ("simba", 4.0, 0.995), ("simba_v2", 1.0, 0.995), ("simba_v2", 4.0, 0.995)
    ]  # fmt: skip
    (tmp_path / "s.toml").write_text(text.replace('"mujoco"', '"mojoco"'))
    with pytest.raises(DeeprlError, match=r"s\.toml:5: recipe: unknown recipe 'mojoco'; did you mean mujoco"):
        read_sweep(tmp_path / "s.toml")
