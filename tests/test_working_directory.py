"""Environments that change the working directory: records go where the run began, under the name that was typed."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deeprl
from deeprl.commands.main import main
from deeprl.errors import DeeprlError, shown
from deeprl.run import snapshots
from deeprl.run.directory import Home

FEW: dict[str, Any] = {"steps": 60, "learning_starts": 20, "batch_size": 4, "hidden": [8], "log_every": 10}
FEW |= {"eval_every": 30, "eval_episodes": 1, "compile": "off", "threads": 1, "snapshot_every": 30}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # which brings the tests back in the end, too
    return tmp_path / "here"


def settings(here: Path, when: str = "made", **other: Any) -> dict[str, Any]:
    kwargs = {"away": str(here.parent / "away"), "when": when}
    return {**FEW, "env": "wandering_envs:Wandering-v0", "env_kwargs": kwargs, **other}


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).parts[0] for path in directory.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("when", ["made", "step"])
def test_records_go_where_the_run_began(when: str, here: Path) -> None:
    whole = deeprl.train("sac", out=str(here / "whole"), **settings(here, when))

    def save(run: Any) -> bool:
        run.save()  # each takes over the rows of the one before
        return run.step == 35

    os.chdir(here)
    deeprl.train("sac", out="runs/a", callback=save, **settings(here, when))
    os.chdir(here)
    run = deeprl.train("sac", out="runs/a", **settings(here, when))
    away = here.parent / "away"
    assert Path.cwd() == away
    assert list(away.iterdir()) == []
    assert run.finished
    assert run.directory == here / "runs" / "a"
    assert files(run.directory) == files(whole.directory)
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(run.directory / name) == rows(here / "whole" / name)
        assert len(rows(run.directory / name)) > 0
    assert json.loads((run.directory / "config.json").read_text())["config"]["out"] == "runs/a"
    assert (run.directory / "run.lock").read_text() == ""
    assert snapshots.snapshot_steps(run.directory) == [30, 60]
    assert {row["step"] for row in deeprl.results(run.directory)} == {30, 60}
    assert deeprl.load(run.directory)(np.zeros(3, np.float32)).shape == (1,)


def test_run_whose_environment_stays_is_named_as_it_was_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = deeprl.train("sac", out="runs/a", **FEW | {"env": "Pendulum-v1"}, callback=lambda run: run.step == 30)
    assert run.directory == Path("runs/a")
    for name, damage in (("evaluations.csv", "x"), ("metrics.csv", "")):
        path = here / "runs" / "a" / name
        before = path.read_text()
        path.write_text(damage)
        with pytest.raises(DeeprlError, match=f"^runs/a/{name} is damaged"):
            deeprl.train("sac", out="runs/a", **FEW | {"env": "Pendulum-v1"})
        path.write_text(before)
    assert main(["resume", "runs/a"]) == 0
    assert "records in runs/a\n" in capsys.readouterr().out


def test_own_networks_beside_the_user_are_found(here: Path) -> None:
    (here / "nets_of_a_wanderer.py").write_text("from deeprl.online.sac import make_net as make\n")
    run = deeprl.train("sac", out="runs/a", net="nets_of_a_wanderer:make", **settings(here))
    assert run.finished
    assert run.directory == here / "runs" / "a"


def test_commands_write_where_they_were_called(here: Path) -> None:
    deeprl.train("sac", out="runs/a", **settings(here))
    os.chdir(here)
    assert main(["evaluate", "runs/a", "--episodes", "1", "--csv", "tables/a.csv"]) == 0
    assert Path.cwd() != here
    assert len(rows(here / "tables" / "a.csv")) == 1


def test_sweep_stays_together(here: Path) -> None:
    own = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings(here).items() if name != "env_kwargs")
    kwargs = settings(here)["env_kwargs"]
    (here / "two.toml").write_text(
        f'[[experiment]]\nalgorithm = ["sac", "td3"]\n{own}\n'
        f'[experiment.env_kwargs]\naway = "{kwargs["away"]}"\nwhen = "made"\n'
    )
    assert main(["sweep", "two.toml"]) == 0
    assert Path.cwd() == here
    assert {row["algorithm"] for row in deeprl.results("runs/two")} == {"sac", "td3"}
    assert (here / "runs" / "two" / "report" / "index.html").exists()
    assert list((here.parent / "away").iterdir()) == []


def test_home_by_hand(here: Path) -> None:
    relative, absolute = Home("runs/a"), Home(str(here / "b"))
    assert (relative(), absolute()) == (Path("runs/a"), here / "b")
    assert shown(here / "runs" / "a") == Path("runs/a")
    os.chdir(here.parent)
    assert (relative(), absolute()) == (here / "runs" / "a", here / "b")
    (here.parent / "gone").mkdir()
    os.chdir(here.parent / "gone")
    (here.parent / "gone").rmdir()
    assert relative() == relative.fixed == here / "runs" / "a"
    assert shown(here / "runs") == here / "runs"
    os.chdir(here)
    assert relative() == Path("runs/a")
