"""Runs at a glance while they are worked on: state, steps, speed, latest return, place. Needs neither torch nor NumPy.

A sweep writes what it has planned to `sweep.json` in its directory, so that runs which nobody has begun are seen too,
and what a worker process prints to `NAME.log` beside the directory of its run.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.errors import DeeprlError
from deeprl.run.lock import Holder, holder
from deeprl.run.records import COMPLETE, read_about, read_object, read_status, run_directories, write_json

PLAN = "sweep.json"
FAILED = "== failed: "  # begins the last line of the log of a run whose worker has failed
_RATE_SECONDS = 60.0
_TAIL_BYTES = 1 << 16


class Glance(NamedTuple):
    """A run as it stands. name: its path below the directory that was asked for.

    state: waiting (planned, and not begun), starting, running, killed (its process is gone), stopped, failed, finished,
    or diverged (all its agents have). step of steps: of each agent, as the log counts.
    diverged: how many agents have so far. rate: steps/s of all agents; left: seconds; ret: mean return of the latest
    evaluation; each NaN while it is not known. where: process and host; note: why it failed.
    """

    name: str
    state: str
    step: int = 0
    steps: int = 0
    agents: int = 1
    diverged: int = 0
    rate: float = math.nan
    left: float = math.nan
    ret: float = math.nan
    where: str = ""
    note: str = ""


def log_of(directory: Path) -> Path:
    """Where what the worker of a run prints is kept: beside its directory, in which only the run itself writes."""
    return directory.with_name(f"{directory.name}.log")


def write_plan(out: Path, units: Iterable[Any]) -> None:
    """Write to `sweep.json` what is planned in `out`: units with directory, name, algorithm and config."""
    out.mkdir(parents=True, exist_ok=True)
    root = Path(os.path.abspath(out))
    planned = [
        {
            "directory": os.path.relpath(os.path.abspath(unit.directory), root),
            "algorithm": unit.algorithm,
            "name": unit.name,
            "agents": len(unit.config.seeds),
            "steps": unit.config.steps,
        }
        for unit in units
    ]
    write_json(out / PLAN, {"runs": planned})


def read_plan(out: Path) -> dict[str, dict[str, Any]]:
    """What `sweep.json` of a directory has planned, by directory; empty where there is none. Raises DeeprlError."""
    runs = (read_object(out / PLAN) or {}).get("runs", [])
    try:
        return {str(run["directory"]): {k: int(run[k]) for k in ("agents", "steps")} for run in runs}
    except (KeyError, TypeError, ValueError) as error:
        raise DeeprlError(f"{out / PLAN} is no plan of a sweep: {error!r}") from error


def glances(directory: str | Path) -> list[Glance]:
    """Every run at or below `directory`, and what is planned there, sorted by path.

    Raises DeeprlError where there is neither.
    """
    root = Path(directory)
    planned = read_plan(root)
    found = {path.relative_to(root).as_posix() for path in run_directories(root)} | planned.keys()
    if not found:
        raise DeeprlError(f"no runs in {root}: found no directory with config.json, and no {PLAN}")
    return [glance(root / name, name, planned.get(name)) for name in sorted(found)]


def glance(directory: Path, name: str, planned: Mapping[str, int] | None = None) -> Glance:
    """One run. planned: agents and steps of one that may not have begun. A file that cannot be read is its note."""
    try:
        return _glance(directory, name, planned or {})
    except (DeeprlError, OSError, KeyError, TypeError, ValueError) as error:
        return Glance(name, "failed", note=f"cannot be read: {error}")


def _glance(directory: Path, name: str, planned: Mapping[str, int]) -> Glance:
    owner = holder(directory)
    at_work = owner is not None and owner.alive is not False
    where = f"{owner.pid} on {owner.host}" if owner is not None and at_work else ""
    note = _failure(directory)
    if not (directory / "config.json").exists():
        state = "starting" if at_work else "failed" if note else "waiting"
        return Glance(name, state, 0, planned.get("steps", 0), planned.get("agents", 1), where=where, note=note)
    about, status = read_about(directory), read_status(directory)
    state = _state(str(status.get("state", "")), owner, at_work, bool(note))
    metrics, evaluations = _last_rows(directory / "metrics.csv"), _last_rows(directory / "evaluations.csv")
    agents, steps = len(about["config"]["seeds"]), int(about["config"]["steps"])
    marks = [(int(row["step"]), float(row["wall_s"])) for row in metrics]
    step = max([int(status.get("step", 0)), *(int(rows[-1]["step"]) for rows in (metrics, evaluations) if rows)])
    speed = _speed(marks, step, status) if state in ("running", "starting") else math.nan
    returns = [float(row["return"]) for row in evaluations if row["step"] == evaluations[-1]["step"]]
    return Glance(
        name, state, step, steps, agents, len(status.get("frozen", [])), speed * agents,
        max(steps - step, 0) / speed if speed > 0 else math.nan, sum(returns) / len(returns) if returns else math.nan,
        where, note if state == "failed" else "",
    )  # fmt: skip


def _state(written: str, owner: Holder | None, at_work: bool, noted: bool) -> str:
    """What a run's files and its lock say together."""
    if at_work:
        return "running" if written == "running" else "starting"
    if written in COMPLETE:
        return written
    if noted:
        return "failed"
    return written if written in ("stopped", "failed") else "killed"


def _failure(directory: Path) -> str:
    """Why the last worker of a run failed; empty if it did not."""
    with contextlib.suppress(OSError):
        last = last_lines(log_of(directory), 1)
        return last[0].removeprefix(FAILED) if last and last[0].startswith(FAILED) else ""
    return ""


def last_lines(file: Path, count: int) -> list[str]:
    """The last lines of a text file, without empty ones."""
    text = _tail(file, _TAIL_BYTES).decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-count:]


def _tail(file: Path, size: int) -> bytes:
    with file.open("rb") as lines:
        lines.seek(max(0, os.fstat(lines.fileno()).st_size - size))
        return lines.read()


def _last_rows(file: Path) -> list[dict[str, str]]:
    """The last rows of a CSV file of a run, all of the newest step among them; a line without its end is left out."""
    if not file.exists():
        return []
    size, total = _TAIL_BYTES, file.stat().st_size
    with file.open("rb") as lines:
        header = lines.readline()
    while True:
        tail = _tail(file, size) if size < total else _tail(file, total)[len(header) :]
        body = tail[: tail.rfind(b"\n") + 1]
        if size < total:
            body = body[body.find(b"\n") + 1 :]  # the first of them may have lost its beginning
        rows = list(csv.DictReader(io.StringIO((header + body).decode("utf-8", errors="replace"))))
        if size >= total or (rows and rows[0]["step"] != rows[-1]["step"]):
            return rows
        size *= 4


def _speed(marks: Sequence[tuple[int, float]], step: int, status: Mapping[str, Any]) -> float:
    """Steps of an agent per second, of the last minute where there are rows of it; NaN where nothing is known yet."""
    if marks:
        last_step, last = marks[-1]
        before = [(at, wall) for at, wall in marks if at < last_step]
        if before:
            recent = [mark for mark in before if last - mark[1] <= _RATE_SECONDS]
            first_step, first = recent[0] if recent else before[-1]
            return (last_step - first_step) / (last - first) if last > first else math.nan
    wall = float(status.get("wall_s") or 0.0)
    return step / wall if step and wall else math.nan
