"""Runs at a glance: what is told of them while they are worked on, from their files alone."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_helpers import ROOT

from deeprl.errors import DeeprlError
from deeprl.launch.board import Board, counted_states, run_line
from deeprl.launch.glance import FAILED, Glance, glance, glances, last_lines, log_of, write_plan
from deeprl.launch.planned import Planned
from deeprl.online import sac
from deeprl.run.lock import Lock

HERE = platform.node()


def made(directory: Path, state: str = "running", step: int = 0, steps: int = 1_000, **status: Any) -> Path:
    """The directory of a run of two agents, without rows."""
    directory.mkdir(parents=True)
    config = {"seeds": [0, 1], "steps": steps}
    about = {"format": 1, "algorithm": "sac", "config": config}
    (directory / "config.json").write_text(json.dumps(about))
    (directory / "status.json").write_text(json.dumps({"state": state, "step": step, "frozen": [], **status}))
    return directory


def metrics(directory: Path, *marks: tuple[int, float]) -> None:
    rows = [f"{step},{member},{member},{wall}\n" for step, wall in marks for member in (0, 1)]
    (directory / "metrics.csv").write_text("step,member,seed,wall_s\n" + "".join(rows))


def evaluations(directory: Path, *rows: tuple[int, int, float], end: str = "\n") -> None:
    text = "\n".join(f"{step},{member},{member},0,{ret},10,1.0" for step, member, ret in rows)
    (directory / "evaluations.csv").write_text(f"step,member,seed,episode,return,length,wall_s\n{text}{end}")


def owned(directory: Path, pid: int, host: str = HERE) -> None:
    (directory / "run.lock").write_text(json.dumps({"pid": pid, "host": host, "since": "now"}))


def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_running_is_told_with_speed_of_the_last_minute_and_mean_return(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    owned(run, os.getpid())
    metrics(run, (100, 5.0), (200, 25.0), (400, 65.0), (500, 85.0))  # the last minute: from 200 at 25 s on
    evaluations(run, (100, 0, -50.0), (100, 1, -50.0), (400, 0, 1.0), (400, 1, 4.0))
    seen = glance(run, "a")
    # 300 steps of two agents in 60 s; 500 more at 5 a second
    assert seen == Glance("a", "running", 500, 1_000, 2, 0, 10.0, 100.0, 2.5, f"{os.getpid()} on {HERE}")
    assert run_line(seen) == f"a x2: running  500/1,000  10/s  1:40 left  return 2.5  {os.getpid()} on {HERE}"


def test_without_rows_of_metrics_the_status_tells_the_speed(tmp_path: Path) -> None:
    run = made(tmp_path / "run", step=200, wall_s=50.0)
    owned(run, os.getpid())
    seen = glance(run, "a")
    assert (seen.step, seen.rate, seen.left) == (200, 8.0, 200.0)
    assert math.isnan(seen.ret)


def test_rows_are_slow_steps(tmp_path: Path) -> None:
    """Where the last two rows are more than a minute apart, these count."""
    run = made(tmp_path / "run")
    owned(run, os.getpid())
    metrics(run, (100, 0.0), (200, 1_000.0), (300, 1_200.0))
    assert glance(run, "a").rate == 2 * 100 / 200


@pytest.mark.parametrize(
    ("written", "owner", "log", "state"),
    [
        ("running", "me", "", "running"),
        ("running", "elsewhere", "", "running"),  # what is so there cannot be seen from here
        ("running", "dead", "", "killed"),
        ("running", "", "", "killed"),
        ("running", "", f"{FAILED}out of memory", "failed"),
        ("running", "me", f"{FAILED}out of memory", "running"),  # it goes on
        ("stopped", "me", "", "starting"),  # and will say so
        ("stopped", "", "", "stopped"),
        ("failed", "", "", "failed"),
        ("finished", "", f"{FAILED}out of memory", "finished"),
        ("diverged", "dead", "", "diverged"),
        (None, "me", "", "starting"),
        (None, "dead", "", "waiting"),
        (None, "", "", "waiting"),
        (None, "", f"{FAILED}no such game", "failed"),
    ],
)
def test_states(written: str | None, owner: str, log: str, state: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir() if written is None else made(run, written)
    if owner:
        owned(run, {"me": os.getpid(), "dead": dead(), "elsewhere": 1}[owner], "elsewhere" if owner[0] == "e" else HERE)
    if log:
        log_of(run).write_text(f"a line\n{log}\n\n")
    seen = glance(run, "a", {"agents": 3, "steps": 7})
    assert seen.state == state
    assert seen.note == (log.removeprefix(FAILED) if state == "failed" else "")
    assert (seen.agents, seen.steps) == ((3, 7) if written is None else (2, 1_000))


def test_long_files_are_read_from_their_end(tmp_path: Path) -> None:
    """All of the newest evaluation counts, however long it is; a line without its end does not."""
    run = made(tmp_path / "run")
    rows = [(10, i, 9.0) for i in range(3_000)] + [(20, i, float(i)) for i in range(5_000)]
    evaluations(run, *rows, end="\n20,77,77,0,1e9")
    assert (run / "evaluations.csv").stat().st_size > 1 << 17
    assert glance(run, "a").ret == 4_999 / 2


def test_what_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    (run / "status.json").write_text("{")
    seen = glance(run, "a")
    assert seen.state == "failed"
    assert "status.json" in seen.note


def test_plan_shows_what_nobody_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    units = [
        Planned("sac", sac.Config(out=f"runs/sac/{name}", seeds=(0, 1, 2), steps=50, learning_starts=10))
        for name in ("begun", "waiting")
    ]
    write_plan(Path("runs"), units)
    made(Path("runs/sac/begun"), "finished", 50, 50)
    made(Path("runs/other"), "stopped", 10)
    assert [(g.name, g.state, g.agents, g.steps) for g in glances("runs")] == [
        ("other", "stopped", 2, 1_000), ("sac/begun", "finished", 2, 50), ("sac/waiting", "waiting", 3, 50)
    ]  # fmt: skip
    assert counted_states(glances("runs")) == "1 stopped, 1 waiting, 1 finished"


def test_a_lock_that_is_held_stays_so_while_it_is_looked_at(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    lock = Lock(run)
    lock.acquire()
    assert glance(run, "a").state == "running"
    lock.release()
    assert glance(run, "a").state == "killed"  # it has left without a word


def test_nothing_to_see_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match=r"no runs in .*: found no directory with config\.json, and no sweep\.json"):
        glances(tmp_path)
    (tmp_path / "sweep.json").write_text('{"runs": [{"directory": "a"}]}')
    with pytest.raises(DeeprlError, match=r"sweep\.json is no plan of a sweep: KeyError\('agents'\)"):
        glances(tmp_path)


def test_status_command_without_torch(tmp_path: Path) -> None:
    made(tmp_path / "one", "stopped", 250)
    made(tmp_path / "two", "finished", 1_000, frozen=[{"member": 0}])
    code = f"""import sys
from deeprl.commands.main import main
status = main(["status", {str(tmp_path)!r}])
assert not {{"torch", "numpy"}} & sys.modules.keys()
sys.exit(status)"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    assert ["one", "x2", "stopped", "250/1,000", "25", "%"] in rows
    assert ["two", "x2", "finished,", "1", "diverged", "1,000/1,000", "100", "%"] in rows
    assert done.stdout.rstrip().splitlines()[-1].strip() == "1 stopped, 1 finished"


def test_board_prints_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("deeprl.launch.board.time.monotonic", lambda: now[0])
    runs = [Glance("a", "running", 5, 10), Glance("b", "waiting", 0, 10)]
    with Board(lambda: runs) as board:
        board.update()
        now[0] = 31.0
        board.update()
        board.update()
        board.say("b: failed")
    assert capsys.readouterr().out.splitlines() == ["a: running  5/10", "1 running, 1 waiting", "b: failed"]


def test_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\n\nb\nc\n\n")
    assert last_lines(tmp_path / "log", 2) == ["b", "c"]
