"""Units as jobs of submitit's local cluster, which starts them as processes of this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from run_helpers import config, status

from deeprl.errors import DeeprlError
from deeprl.launch.glance import last_lines, log_of
from deeprl.launch.hands import End
from deeprl.launch.launcher import Launching
from deeprl.launch.planned import Planned
from deeprl.run.lock import holder

pytest.importorskip("submitit", reason="the extra [slurm] is not installed")

from deeprl.launch.slurm import SlurmHands

BEFORE = {"steps": 28, "learning_starts": 27, "eval_every": 0}


def unit(out: Path, **settings) -> Planned:
    return Planned("sac", config(out, **(BEFORE | settings)))


def waited(hands: SlurmHands) -> dict[int, End]:
    found: dict[int, End] = {}
    until = time.monotonic() + 120
    while hands.busy() and time.monotonic() < until:
        found |= {end.number: end for end in hands.ended()}
        time.sleep(0.1)
    return found


def test_jobs_end_with_the_status_of_their_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprl.launch.slurm._LOOK_SECONDS", 0.1)
    units = [unit(tmp_path / "fine"), unit(tmp_path / "broken", env="Nowhere-v0")]
    with SlurmHands(units, tmp_path, {"timeout_min": 5}, 2, cluster="local") as hands:
        for i in range(2):
            assert hands.free()
            hands.start(i)
        assert not hands.free()
        ends = waited(hands)
    assert ends == {0: End(0, 0), 1: End(1, 2)}
    assert units[0].finished()
    assert "Nowhere" in last_lines(log_of(units[1].directory), 1)[0]


def test_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprl.launch.slurm._LOOK_SECONDS", 0.1)
    endless = unit(tmp_path / "run", steps=10_000_000, learning_starts=9_000_000, buffer_size=1_000)
    with SlurmHands([endless], tmp_path, {"timeout_min": 5}, None, cluster="local") as hands:
        hands.start(0)
        for session in (1, 2):
            until = time.monotonic() + 120
            while status_of(endless) != ("running", session):
                assert time.monotonic() < until
                time.sleep(0.05)
            if session == 1:
                os.kill(job_of(endless), signal.SIGUSR2)  # as Slurm does before it takes a job's place away
        hands.stop()
        waited(hands)
    until = time.monotonic() + 60
    while status_of(endless)[0] != "stopped":  # its process may end after its job
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "ended without leaving" not in log_of(endless.directory).read_text()


def job_of(unit: Planned) -> int:
    """The process of the job whose worker is at a run: the one that started it."""
    owner = holder(unit.directory)
    assert owner is not None
    return int(Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[1])


def status_of(unit: Planned) -> tuple[str, int]:
    """The state of a run, and how many workers it has had."""
    try:
        return status(unit.directory)["state"], log_of(unit.directory).read_text().count("== ")
    except FileNotFoundError:
        return "", 0


def test_parameters_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match=r"--resources: submitit refuses this: .*cpus_per_tusk"):
        SlurmHands([], tmp_path, {"cpus_per_tusk": 2}, None, cluster="local")


def test_without_slurm_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprl.launch.launcher.shutil.which", lambda name: None)
    with pytest.raises(DeeprlError, match="--launcher slurm: there is no sbatch on this machine"):
        Launching("slurm")
