"""Recipes: published settings under a name, in Python, on the command line and in sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

import deeprl
from deeprl import api, cli
from deeprl.api import algorithm_module
from deeprl.config import build
from deeprl.data.offline import OfflineConfig
from deeprl.errors import DeeprlError
from deeprl.recipes import RECIPES, discount_of, with_recipe
from deeprl.sweep import read_sweep

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


def test_simba_v2_on_the_control_suite_is_as_published() -> None:
    config = build(algorithm_module("simba_v2").Config, with_recipe("simba_v2", {"recipe": "dmc"}))
    assert (config.env_kwargs, config.critics, config.utd) == ({"action_repeat": 2}, 1, 2.0)
    assert (config.discount, config.lr_horizon, config.learning_starts) == (0.99, 500_000, 5_000)


def test_settings_beside_a_recipe_count_more() -> None:
    assert with_recipe("simba", {"recipe": "dmc", "utd": 1.0})["utd"] == 1.0
    assert with_recipe("td3", {"utd": 1.0}) == {"utd": 1.0}


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
