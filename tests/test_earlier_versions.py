"""Runs of earlier versions are read, loaded and gone on with. Those in data/earlier were made at commit a9317640d8."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import deeprl
from deeprl.commands import main as cli
from deeprl.reporting.read import group, read_runs
from deeprl.reporting.report import write_report

HERE = Path(__file__).parent / "data" / "earlier"
# What that version wrote where the stopped runs were not stopped.
WHOLE = -1059.1266316030844


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(HERE, tmp_path / "runs")
    (tmp_path / "runs" / "made.npz").rename(tmp_path / "made.npz")
    monkeypatch.chdir(tmp_path)  # where they began: their dataset is named from there
    return tmp_path / "runs"


def test_their_agents_are_in_the_same_cells_as_new_ones(root: Path) -> None:
    new = {"eval_episodes": 1, "compile": "off", "threads": 1, "tensorboard": False, "hidden": [8], "batch_size": 4}
    new |= {"env": "Pendulum-v1", "steps": 40, "learning_starts": 20, "eval_every": 20, "out": str(root / "new")}
    deeprl.train("sac", seeds=[5], critic_lr=3e-4, **new)
    cells = {cell.name: [agent.seed for _, agent in pairs] for cell, pairs in group(read_runs(root)).items()}
    assert cells == {"bc": [0], "sac critic_lr=0.0003": [0, 5], "sac critic_lr=0.001": [0, 1]}
    assert write_report(root).exists()


def test_their_agents_are_loaded(root: Path) -> None:
    actions = [deeprl.load(root / "population", member=i)(np.ones(3)) for i in (0, 1)]
    assert all(action.shape == (1,) and abs(float(action[0])) <= 2.0 for action in actions)
    assert deeprl.load(root / "dataset")(np.ones(3)).shape == (2,)


def test_they_go_on(root: Path) -> None:
    assert cli.main(["resume", str(root / "stopped")]) == 0
    assert cli.main(["resume", str(root / "population")]) == 0
    rows = deeprl.results(root / "stopped")
    assert [row["step"] for row in rows] == [20, 40]
    assert rows[-1]["return"] == pytest.approx(WHOLE, rel=1e-2)
    assert cli.main(["resume", str(root / "dataset")]) == 0
    about = json.loads((root / "dataset" / "config.json").read_text(encoding="utf-8"))
    assert set(about["datasets"]) == {"made.npz"}  # known from now on
