"""A part of `benchmarks/faults.py` that fits into every test run: kills, signals, damaged files, disks that fail.

Runs are processes of their own, forked where everything is imported, that get the words of the command line.
"""

import os
import random
import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import fault_cases
import fault_damage
import fault_disk
import fault_files
import fault_kills
from fault_kills import Moment
from fault_runs import SELDOM, Case, attempt, begin, checkpoints, compare, end, newest_step, unfinished

SHORT = '--env Pendulum-v1 --env-kwargs {"max_episode_steps":40}'
SMALL = "--hidden 16 16 --batch-size 16 --eval-episodes 2"
# Few steps, all phases in them, and a checkpoint every 30 ms at most.
KILLED = {
    "sac": (
        Case(
            "sac", 120,
            f"{SHORT} --seeds 0-1 --learning-starts 60 --log-every 15 --eval-every 50 {SMALL}",
            minutes=5e-4,
        ),
        [Moment("directory", -1, 0.005), Moment("save", 50, 0.003), Moment("steps", 90, 0.05)],
    ),
    "td3": (
        Case(
            "td3", 200,
            "--env Hopper-v5 --seeds 0-1 --envs-per-agent 2 --learning-starts 60 --utd 0.5 --log-every 16"
            f" --eval-every 80 --no-tensorboard {SMALL}",
            minutes=5e-4,
        ),
        [Moment("start", -1, 0.3), Moment("rows", 60, 0.002), Moment("save", 120, 0.001)],
    ),
    "dqn": (
        Case(
            "dqn", 360,
            "--env CartPole-v1 --seeds 0-1 --prioritized --n-step 3 --learning-starts 100 --train-every 4 --utd 0.25"
            f" --buffer-size 300 --log-every 25 --eval-every 120 --no-tensorboard {SMALL}",
            minutes=5e-4,
        ),
        [Moment("save", 150, 0.002), Moment("end", 360, 0.01)],
    ),
}  # fmt: skip


def finish(words):
    done = attempt(words)
    assert done.status == 0, done.output
    assert "Traceback" not in done.output


# --- kills and signals ---


@pytest.mark.parametrize("name", KILLED)
def test_run_killed_again_and_again_ends_as_one_that_was_not(name, tmp_path):
    case, moments = KILLED[name]
    whole, out, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    finish(case.command(whole, *SELDOM))
    log.touch()
    killed = 0
    for moment in moments:
        old = unfinished(out)
        process = begin(case.command(out), log)
        fault_kills.wait(moment, lambda process=process: process.exitcode is not None, out)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), log.read_text()
        killed += process.exitcode != 0
        print(moment, process.exitcode, "at", newest_step(out), unfinished(out) - old)  # shown if the test fails
    finish(case.command(out, *SELDOM))
    assert killed >= len(moments) - 1  # one may come too late
    assert compare(whole, out).differences == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_with_a_checkpoint_and_the_command_that_resumes(number, tmp_path):
    case = KILLED["dqn"][0]
    whole, out, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    finish(case.command(whole, *SELDOM))
    log.touch()
    process = begin(case.command(out, "--checkpoint-minutes", "0"), log)  # it saves nothing of its own accord
    fault_kills.wait(Moment("rows", -1, 0.05), lambda: process.exitcode is not None, out)
    os.kill(process.pid, number)
    stopped = end(process, log)
    assert fault_kills.stopped_badly(stopped.status, stopped.output, out, number) == []
    assert stopped.status == 128 + number
    assert 100 < newest_step(out) < case.steps
    finish(case.command(out, *SELDOM))
    assert compare(whole, out).differences == []


# --- damaged files ---


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A finished run, and a killed one with three checkpoints."""
    place = tmp_path_factory.mktemp("files")
    finish(fault_files.CASE.command(place / "whole", *SELDOM))
    fault_files.unfinished_run(fault_files.CASE, place / "base", fault_files.KILL_AT)
    return place


DAMAGES = [
    "state.pt: 0 of", "state.pt: a byte more", "manifest.json: nested 100,000 deep", "manifest.json: not UTF-8",
    "format 999", "state.pt, forged: without agents", "hostile torch zip as state.pt", "all checkpoints broken",
    "a directory without a whole config.json", "metrics.csv: half a number", "evaluations.csv: NUL bytes at",
    "config.json: half", "status.json: half",
]  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_is_noticed(name, damaged, tmp_path):
    found = [d for d in fault_cases.damages(damaged / "base", random.Random(0)) if d.name.startswith(name)]
    row = fault_files.examine(found[0], damaged / "base", damaged / "whole", tmp_path / "case")
    assert row["ok"], row


def test_forged_manifest_passes_so_that_hostile_content_is_what_is_refused(damaged, tmp_path):
    (same,) = (d for d in fault_cases.damages(damaged / "base", random.Random(0)) if d.name.endswith("the same again"))
    row = fault_files.examine(same, damaged / "base", damaged / "whole", tmp_path / "case")
    assert row["outcome"] == fault_cases.SAME


def test_hostile_file_would_run_code_without_care(damaged, tmp_path):
    import torch

    fault_files.copy(damaged / "base", tmp_path / "case")
    fault_damage.hostile("torch zip", "state.pt", tmp_path / "case")
    torch.load(checkpoints(tmp_path / "case")[-1] / "state.pt", weights_only=False)
    assert fault_damage.sentinel(tmp_path / "case").is_dir()


# --- disks ---


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A place, and in it the runs that `runs_of` has been asked for."""
    return tmp_path_factory.mktemp("disk"), {}


def runs_of(case, disk):
    place, made = disk
    if case not in made:
        made[case] = place / f"base_{len(made)}", place / f"whole_{len(made)}"
        fault_files.unfinished_run(case, made[case][0], 150, 2)
        finish(case.command(made[case][1], *SELDOM))
    return made[case]


DISK_FAULTS = {fault.name: fault for fault in fault_disk.FAULTS}
FAULTS = {
    "full at the start (limit on files)", "full in a checkpoint (limit on files)", "full in a row (limit on files)",
    "read-only parent directory", "read-only at a resume", "read-only in the middle",
    "moved away in the middle, checkpoint next",
}  # fmt: skip


@pytest.mark.parametrize("fault", [DISK_FAULTS[name] for name in sorted(FAULTS)], ids=lambda f: f.name)
def test_disk_that_fails_is_named_and_nothing_lost(fault, disk):
    row = fault_disk.examine(fault, *runs_of(fault.case, disk), disk[0] / "case")
    assert row["ok"], row["outcome"]
