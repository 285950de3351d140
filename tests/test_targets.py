"""Where commands write: onto nothing that is another's, and what is refused stays as it is to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deeprl
from deeprl.commands.main import main
from deeprl.reporting.report import write_report
from deeprl.reporting.table import COLUMNS
from deeprl.run.targets import is_report, is_run

FEW: dict[str, Any] = {"steps": 20, "learning_starts": 10, "batch_size": 4, "hidden": [8], "eval_episodes": 1}
FEW |= {"compile": "off", "threads": 1, "tensorboard": False, "env": "Pendulum-v1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, a dataset made of it, and a table of its episodes."""
    root = tmp_path_factory.mktemp("trained")
    deeprl.train("sac", out=str(root / "run"), **FEW)
    assert main(["report", str(root / "run"), "--out", str(root / "report")]) == 0
    assert main(["evaluate", str(root / "run"), "--episodes", "1", "--csv", str(root / "episodes.csv")]) == 0
    create = ["dataset", "create", str(root / "data.hdf5"), "--run", str(root / "run"), "--kind", "expert"]
    assert main([*create, "--steps", "200"]) == 0
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of these, and further targets: notes, a run that has begun, other tables, a Minari dataset."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "index.html").write_text("<title>my notes</title>", encoding="utf-8")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.lock").write_text("", encoding="utf-8")
    (tmp_path / "minari" / "data").mkdir(parents=True)
    (tmp_path / "minari" / "data" / "metadata.json").write_text("{}", encoding="utf-8")
    (tmp_path / "other.csv").write_text("name,grade\nA,1\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    (tmp_path / "nothing.csv").write_text("", encoding="utf-8")
    (tmp_path / "film.gif").write_bytes(b"GIF of somebody")
    return tmp_path


def content(path: Path) -> dict[str, bytes]:
    """Every file at or below a path, directories with a slash."""
    found = [path, *path.rglob("*")] if path.exists() else []
    return {str(p): p.read_bytes() if p.is_file() else b"/" for p in found}


COMMANDS: dict[str, Callable[[Path, str], list[str]]] = {
    "report": lambda root, target: ["report", str(root / "run"), "--out", target],
    "rows": lambda root, target: ["report", str(root / "run"), "--out", str(root / "r"), "--rows", target],
    "evaluate": lambda root, target: ["evaluate", str(root / "run"), "--episodes", "1", "--csv", target],
    "watch": lambda root, target: ["watch", str(root / "run"), "--max-steps", "2", "--out", target],
    "create": lambda root, target: [
        "dataset", "create", target, "--run", str(root / "run"), "--kind", "expert", "--steps", "200",
    ],
    "corrupt": lambda root, target: ["dataset", "corrupt", str(root / "data.hdf5"), target, "--element", "reward"],
    "train": lambda root, target: [
        *["train", "sac", "--env", "Pendulum-v1", "--steps", "20", "--learning-starts", "10", "--out", target],
        *["--compile", "off", "--eval-episodes", "0", "--no-tensorboard", "--hidden", "8", "--seeds", "5"],
    ],
}  # fmt: skip

REFUSED = {
    "report": ["run", "begun", "notes", "minari", "film.gif", "run/checkpoints", "run/snapshots", "run/tensorboard/a"],
    "rows": """run run/evaluations.csv run/metrics.csv run/config.json other.csv episodes.csv film.gif
        report/summary.csv begun/metrics.csv data.hdf5""".split(),
    "evaluate": """run run/evaluations.csv run/metrics.csv run/status.json other.csv rows.csv film.gif
        report/summary.csv run/snapshots/a.csv data.hdf5""".split(),
    "watch": ["run", "empty", "other.csv", "run/config.json", "data.hdf5", "run/checkpoints/a.gif", "film.avi"],
    "create": ["data.hdf5", "run/a.hdf5", "run/snapshots/a.hdf5", "run/checkpoints/a.h5", "other.csv"],
    "corrupt": ["data.hdf5", "run/snapshots/a.hdf5", "run/checkpoints/a.h5", "other.csv", "run"],
    "train": ["run", "report", "notes", "minari", "other.csv"],
}
WRITTEN = {
    "report": ["new", "new/below", "empty", "report", "run/report"],
    "rows": ["new.csv", "rows.csv", "nothing.csv"],
    "evaluate": ["new.csv", "below/new.csv", "episodes.csv", "nothing.csv", "run/episodes.csv"],
    "watch": ["new.gif", "film.gif", "new/a.gif", "run/a.gif"],
    "create": ["new.hdf5"],
    "corrupt": ["new.hdf5"],
    "train": ["new", "empty"],
}


@pytest.mark.parametrize(("command", "target"), [(c, t) for c, targets in REFUSED.items() for t in targets])
def test_what_is_another_s_is_refused_and_stays_as_it_is(
    command: str, target: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(root)
    assert main(COMMANDS[command](root, str(root / target))) == 2
    (line,) = [said for said in capsys.readouterr().err.splitlines() if said.startswith("deeprl: ")]
    assert line.removeprefix("deeprl: ").lstrip("'").startswith(str(root / target))
    assert content(root) == before


@pytest.mark.parametrize(("command", "target"), [(c, t) for c, targets in WRITTEN.items() for t in targets])
def test_what_is_new_or_of_the_same_kind_is_written(command: str, target: str, root: Path) -> None:
    before = content(root / "run")
    others = {k: v for k, v in content(root).items() if not k.startswith(str((root / target).parent))}
    assert main(COMMANDS[command](root, str(root / target))) == 0
    assert (root / target).exists()
    after, whole = content(root / "run"), content(root)
    assert {k: after[k] for k in before} == before  # the run is what it was, whatever lies beside its records
    assert {k: whole[k] for k in others} == others
    assert not list(root.rglob("*.part*"))


def test_report_replaces_the_pictures_of_an_earlier_one_and_keeps_other_files(root: Path) -> None:
    (root / "report" / "curve_Gone-v1.png").write_bytes(b"old")
    (root / "report" / "notes.txt").write_text("mine", encoding="utf-8")
    write_report(root / "run", root / "report")
    assert sorted(p.name for p in (root / "report").iterdir()) == [
        "config.json", "curve_Pendulum-v1.png", "evaluation_seeds.csv", "index.html", "notes.txt",
        "report.json", "summary.csv"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "holds"),
    [
        ({"curve_Pendulum-v1.png"}, True),  # what is there when writing one was interrupted
        ({"curve_Pendulum-v1.png", "summary.csv"}, True),
        ({"curve_Pendulum-v1.png", "summary.csv", "config.json"}, True),
        ({"index.html"}, True),
    ],
)
def test_a_report_is_known_in_parts(kept: set[str], holds: bool, root: Path) -> None:
    for path in (root / "report").iterdir():
        if path.name not in kept:
            path.unlink()
    assert is_report(root / "report") == holds


def test_files_of_the_same_names_are_no_report(root: Path) -> None:
    (root / "report" / "config.json").write_text(json.dumps({"mine": 1}), encoding="utf-8")
    assert not is_report(root / "report")
    shutil.rmtree(root / "report")
    (root / "report").mkdir()
    (root / "report" / "summary.csv").write_text("student,grade\n", encoding="utf-8")
    assert not is_report(root / "report")


def test_runs_are_known(root: Path) -> None:
    assert [name for name in ("run", "begun", "report", "notes", "empty", "absent") if is_run(root / name)] == [
        "run", "begun"
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["run", "run/snapshots", "film.gif", "with_notes"])
def test_sweeps_are_refused_before_they_train(target: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "with_notes" / "report").mkdir(parents=True)
    (root / "with_notes" / "report" / "mine.txt").write_text("mine", encoding="utf-8")
    file = root / "sweep.toml"
    text = f'out = "{root / target}"\n[[experiment]]\nalgorithm = "sac"\nenv = "Pendulum-v1"\nsteps = 20000\n'
    file.write_text(text, encoding="utf-8")
    before = content(root)
    assert main(["sweep", str(file)]) == 2
    assert str(root / target) in capsys.readouterr().err
    assert content(root) == before
