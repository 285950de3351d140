"""Datasets of runs are found again after they have moved, and not taken for others."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_helpers import made
from recordings import write_minari

import deeprl
from deeprl.commands import main as cli
from deeprl.commands import resume
from deeprl.data.source import digest_of, facts_of_source, find_again, same_datasets
from deeprl.errors import DeeprlError
from deeprl.launch.sweep import read_sweep, run_sweep
from deeprl.reporting.read import group, read_runs

ENV = "offline_helpers:MadeLinear-v0"
HOW: dict[str, Any] = {
    "steps": 6, "env": ENV, "hidden": (8,), "batch_size": 4, "eval_episodes": 1, "compile": "off", "threads": 1,
    "tensorboard": False,
}  # fmt: skip


def write(path: Path, seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **made(seed=seed))
    return str(path)


def train(out: Path, callback: Any = None, **settings: Any) -> Any:
    return deeprl.train("bc", out=str(out), callback=callback, **{**HOW, **settings})


def half(run: Any) -> bool:
    return run.step >= 3


def test_a_file_is_what_it_holds_wherever_it_is(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "x.npz"), write(tmp_path / "b" / "x.npz", seed=1)
    copy = shutil.copy(one, tmp_path / "c.npz")
    assert digest_of(Path(one)) == digest_of(Path(copy)) != digest_of(Path(other))
    assert facts_of_source(one) == {"path": one, "sha256": digest_of(Path(one))}


def test_a_minari_dataset_is_the_files_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name in ("toy/one-v0", "toy/two-v0"):
        write_minari(tmp_path, name, total_steps=13)
    facts = facts_of_source("toy/one-v0")
    assert facts["path"] == str(tmp_path / "toy" / "one-v0" / "data")
    assert facts == facts_of_source(str(tmp_path / "toy" / "one-v0"))
    with (tmp_path / "toy" / "one-v0" / "data" / "metadata.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    assert facts_of_source("toy/one-v0")["sha256"] != facts["sha256"]


def test_of_two_places_the_one_counts_that_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write(tmp_path / "there" / "a.npz")
    known = {"a.npz": facts_of_source(there)}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert find_again("a.npz", known) == (there, known["a.npz"])  # nothing of the name here
    write(tmp_path / "here" / "a.npz", seed=1)
    assert find_again("a.npz", known) == (there, known["a.npz"])  # something else here
    shutil.copy(there, tmp_path / "here" / "a.npz")
    place, facts = find_again("a.npz", known)
    assert (place, facts["path"]) == ("a.npz", str(tmp_path / "here" / "a.npz"))
    Path(there).unlink()
    (tmp_path / "here" / "a.npz").unlink()
    with pytest.raises(DeeprlError, match=f"a.npz: neither here nor at {there}.*--dataset PATH"):
        find_again("a.npz", known)


def test_names_of_a_population_are_the_same_where_each_agents_data_are(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.npz"), write(tmp_path / "b.npz", seed=1)
    c = shutil.copy(a, tmp_path / "c.npz")
    known = {source: facts_of_source(source) for source in (a, b)}
    assert same_datasets(a, str(c), 2, known)
    assert same_datasets([a, b], [str(c), b], 2, known)
    assert not same_datasets([a, b], [b, str(c)], 2, known)
    assert not same_datasets(a, b, 1, {})  # an older run, which has kept nothing


@pytest.mark.parametrize("callback", [half, None], ids=["unfinished", "finished"])
def test_a_dataset_that_was_made_anew_is_refused(tmp_path: Path, callback: Any) -> None:
    source = write(tmp_path / "a.npz")
    train(tmp_path / "run", callback, dataset=source)
    write(tmp_path / "a.npz", seed=1)
    for again in (lambda: train(tmp_path / "run", dataset=source), lambda: _resume(tmp_path / "run")):
        before = _kept(tmp_path / "run")
        with pytest.raises(DeeprlError, match=r"a\.npz is not what it was when this run began; choose another --out"):
            again()
        assert _kept(tmp_path / "run") == before


def _resume(run: Path) -> int:
    return resume.run(argparse.Namespace(run_dir=str(run), dataset=None))


def _kept(run: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "run.lock"}


def test_a_run_goes_on_where_its_dataset_lies_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", dataset=write(tmp_path / "a.npz"))
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", half, dataset="a.npz")
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["datasets"] == {"a.npz": {"path": str(tmp_path / "a.npz"), "sha256": digest_of(tmp_path / "a.npz")}}
    assert about["config"]["dataset"] == "a.npz"
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "moved" / "b.npz")
    assert cli.main(["resume", str(tmp_path / "run")]) == 2
    assert cli.main(["resume", str(tmp_path / "run"), "--dataset", "moved/b.npz", "moved/b.npz"]) == 2
    assert "--dataset: 2 given, but this run has 1: a.npz" in capsys.readouterr().err
    assert cli.main(["resume", str(tmp_path / "run"), "--dataset", "moved/b.npz"]) == 0
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["datasets"]["moved/b.npz"]["path"] == str(tmp_path / "moved" / "b.npz")
    assert about["config"]["dataset"] == "moved/b.npz"
    monkeypatch.chdir("/")
    assert cli.main(["resume", str(tmp_path / "run")]) == 0  # finished; its data are found from anywhere
    assert _returns(tmp_path / "run") == _returns(whole.directory)
    assert [(cell.env, len(pairs)) for cell, pairs in group(read_runs(tmp_path)).items()] == [("a", 2)]


def _returns(run: Path) -> list[float]:
    return [row["return"] for row in deeprl.results(run)]


def test_another_dataset_of_another_name_is_another_run(tmp_path: Path) -> None:
    train(tmp_path / "run", half, dataset=write(tmp_path / "a.npz"))
    with pytest.raises(DeeprlError, match=r"holds another run \(dataset"):
        train(tmp_path / "run", dataset=write(tmp_path / "b.npz", seed=1))


def test_a_run_of_an_older_version_is_checked_by_its_checkpoint(tmp_path: Path) -> None:
    source = write(tmp_path / "a.npz")
    train(tmp_path / "run", dataset=source)
    config = tmp_path / "run" / "config.json"
    old = json.loads(config.read_text())
    kept = old.pop("datasets")
    config.write_text(json.dumps(old))
    assert train(tmp_path / "run", dataset=source).finished
    assert json.loads(config.read_text())["datasets"] == kept  # from now on
    config.write_text(json.dumps(old))
    write(tmp_path / "a.npz", seed=1)
    with pytest.raises(DeeprlError, match="is not what it was"):
        train(tmp_path / "run", dataset=source)


def test_a_sweep_does_not_skip_what_was_trained_on_other_data(tmp_path: Path) -> None:
    source = write(tmp_path / "a.npz")
    settings = "\n".join(f"{k} = {json.dumps(v)}" for k, v in HOW.items() if k != "env")
    text = f'out = "{tmp_path / "runs"}"\n[[experiment]]\nalgorithm = "bc"\ndataset = "{source}"\nenv = "{ENV}"\n'
    (tmp_path / "sweep.toml").write_text(text + settings)
    run_sweep(tmp_path / "sweep.toml")
    ((planned),) = read_sweep(tmp_path / "sweep.toml")[1]
    assert planned.finished()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "elsewhere" / "a.npz")
    (tmp_path / "sweep.toml").write_text(text.replace(source, str(tmp_path / "elsewhere" / "a.npz")) + settings)
    run_sweep(tmp_path / "sweep.toml")  # the same data: nothing is trained anew
    assert len(read_runs(tmp_path / "runs")) == 1
    write(tmp_path / "elsewhere" / "a.npz", seed=1)
    with pytest.raises(DeeprlError, match=r"a\.npz is not the file that it was when .* began"):
        run_sweep(tmp_path / "sweep.toml")
