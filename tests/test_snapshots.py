"""Snapshots: agents at several moments of a run, to load, to evaluate and to make datasets of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import assert_equal

import deeprl
from deeprl.commands import main as cli
from deeprl.errors import DeeprlError
from deeprl.make_data.candidates import run_sources
from deeprl.make_data.collect import Request, choose, create
from deeprl.make_data.recorder import Seats
from deeprl.run import snapshots

TINY: dict[str, Any] = {
    "env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 20}, "steps": 60, "learning_starts": 20, "seeds": [0, 1],
    "hidden": [8], "batch_size": 8, "eval_episodes": 1, "eval_every": 0, "compile": "off", "threads": 1,
    "tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snapshots") / "run"
    return deeprl.train("sac", out=str(out), snapshot_every=25, **TINY).directory


def test_a_snapshot_is_the_agent_of_its_step(run_dir: Path, tmp_path: Path) -> None:
    assert snapshots.snapshot_steps(run_dir) == [25, 50]
    stopped = deeprl.train("sac", out=str(tmp_path / "run"), **TINY, callback=lambda run: run.step == 50)
    for seed in (0, 1):
        then, there = deeprl.load(run_dir, seed=seed, step=50), deeprl.load(stopped.directory, seed=seed)
        assert_equal(then._state, there._state)
        assert not np.array_equal(then([1.0, 0.0, 2.0]), deeprl.load(run_dir, seed=seed)([1.0, 0.0, 2.0]))
    assert deeprl.load(run_dir, seed=0, step=60)._state.step == deeprl.load(run_dir, seed=0)._state.step
    with pytest.raises(DeeprlError, match=r"has no snapshot of step 30; it has 25, 50$"):
        deeprl.load(run_dir, seed=0, step=30)
    with pytest.raises(DeeprlError, match=r"has no snapshot of step 30; it has none \(--snapshot-every\)$"):
        deeprl.load(stopped.directory, seed=0, step=30)


def test_a_run_that_goes_on_from_before_a_snapshot_makes_it_again(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stop in (30, 55):  # the snapshot of 50 is made twice: the second session goes on from 30
        deeprl.train("sac", out=str(out), snapshot_every=25, **TINY, callback=lambda run, at=stop: run.step == at)
        if stop == 55:
            (out / "checkpoints" / "000000055" / "state.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="000000055 is broken"):
        deeprl.train("sac", out=str(out), snapshot_every=25, **TINY)
    assert snapshots.snapshot_steps(out) == [25, 50]
    assert len(list((out / "snapshots").iterdir())) == 2
    for step in (25, 50):
        assert_equal(deeprl.load(out, seed=1, step=step)._state, deeprl.load(run_dir, seed=1, step=step)._state)
    found = snapshots.load_snapshot(out, 25)
    assert found is not None
    assert found[1].keys() == {"agents"}


def test_a_broken_snapshot_is_named_alone(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (copy / "snapshots" / "000000025" / "state.pt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="000000025 is broken"),
        pytest.raises(DeeprlError, match=r"checkpoint .*snapshots/000000025 is broken; delete it$"),
    ):
        deeprl.load(copy, seed=0, step=25)
    assert deeprl.load(copy, seed=0, step=50).seed == 0
    shutil.rmtree(copy / "checkpoints")  # as in the first minutes of a run
    assert_equal(deeprl.load(copy, seed=0)._state, deeprl.load(run_dir, seed=0, step=50)._state)


def test_snapshots_of_other_steps_stay_whatever_the_interval(tmp_path: Path) -> None:
    for stop, every in ((30, 10), (55, 25)):
        settings = TINY | {"out": str(tmp_path / "run"), "snapshot_every": every}
        deeprl.train("sac", **settings, callback=lambda run, at=stop: run.step == at)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # begins anew
    deeprl.train("sac", **(TINY | {"out": str(tmp_path / "run"), "snapshot_every": 15}))
    assert snapshots.snapshot_steps(tmp_path / "run") == [10, 15, 20, 30, 45, 50, 60]
    spec = deeprl.load(tmp_path / "run", seed=0).spec
    names = [s.name for s in run_sources(str(tmp_path / "run"), spec, "Pendulum-v1", 0, mean_action=True)]
    assert names == [*(f"run:seed_0_step_{n}" for n in (10, 15, 20, 30, 45, 50)), "run:seed_0"]  # 60 is the last


def test_commands_take_the_step_of_a_snapshot(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in ([], ["--step", "25"], ["--step", "50"]):
        assert cli.main(["evaluate", str(run_dir), "--episodes", "2", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 3
    assert cli.main(["evaluate", str(run_dir), "--step", "1"]) == 2
    assert "it has 25, 50" in capsys.readouterr().err


def test_datasets_of_an_agent_at_several_moments_of_its_training(run_dir: Path, tmp_path: Path) -> None:
    spec = deeprl.load(run_dir, seed=0).spec
    sources = run_sources(str(run_dir), spec, "Pendulum-v1", 0, mean_action=True)
    assert [source.name for source in sources] == ["run:seed_0_step_25", "run:seed_0_step_50", "run:seed_0"]
    shares = choose("medium-replay", sources, lambda: [-9.0, -6.0, -7.0, 0.0])  # a third of the way is -6
    assert [share.source.name for share in shares] == ["run:seed_0_step_25", "run:seed_0_step_50"]
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = deeprl.load(run_dir, seed=0, step=25)(obs)
    seats = Seats(np.arange(4), np.ones(4, bool))
    np.testing.assert_allclose(sources[0].act(obs, np.random.default_rng(0), seats), expected, rtol=1e-5, atol=1e-6)
    named = {"medium": "seed_1_step_25", "runs": (str(run_dir),)}
    create(Request(str(tmp_path / "d.hdf5"), "", "medium", 50, **named))
    with h5py.File(tmp_path / "d.hdf5") as file:
        assert file["observations"].shape == (50, 3)
        assert "the policy named seed_1_step_25" in str(dict(file.attrs))
