"""Runs that are killed again and again at random moments, or stopped by a signal, and continued by the same command.

Moments are drawn from a generator with a stated seed. Each waits until the newest checkpoint has reached a step drawn
from the whole run, so that the kills are spread over it and every session goes on from where another ended; then for
one of `KINDS`; then for a random time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fault_runs import Case, checkpoints, compare, newest_step, start, unfinished

# What a moment waits for: the longest random time after it in seconds, and its share of the moments.
KINDS = {
    "start": (5.0, 0.2),  # the process has begun: imports, environments, reading the checkpoint
    "directory": (0.05, 0.05),  # the run directory is there
    "steps": (0.5, 0.3),  # nothing more: anywhere in training
    "save": (0.02, 0.3),  # a checkpoint is being written
    "rows": (0.02, 0.1),  # a row was written to metrics.csv or evaluations.csv
    "end": (0.6, 0.05),  # the last evaluation is done
}
WAIT_S = 300.0  # for a moment that never comes


class Moment(NamedTuple):
    """When to strike. step: the newest checkpoint must have reached it; after: seconds."""

    kind: str
    step: int
    after: float


@dataclasses.dataclass
class Tally:
    """struck: signals to a living process, by kind of moment. failures: sessions that did not go on; complaints: those
    that stopped badly."""

    struck: Counter[str] = dataclasses.field(default_factory=Counter)
    in_save: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    complaints: list[str] = dataclasses.field(default_factory=list)


def moments(kills: int, steps: int, draw: random.Random) -> list[Moment]:
    """Moments of a run of so many steps, in the order in which they come."""
    fixed = ["start", "directory", "save", "steps", "rows", "end"]
    kinds = fixed[:kills] + draw.choices(list(KINDS), [share for _, share in KINDS.values()], k=max(kills - 6, 0))
    found = []
    for kind in kinds:
        at = {"directory": -1, "end": steps}.get(kind, int(draw.uniform(-0.05, 0.9) * steps))
        found.append(Moment(kind, max(at, -1), draw.uniform(0.0, KINDS[kind][0])))
    return sorted(found, key=lambda m: m.step)


def wait(moment: Moment, ended: Callable[[], bool], out: Path) -> None:
    """Return at the moment, or when the process has ended."""
    records = [out / "metrics.csv", out / "evaluations.csv"]
    began, old = time.monotonic(), unfinished(out)

    def wait_for(condition: Callable[[], bool], pause: float) -> None:
        while not ended() and not condition():
            if time.monotonic() - began > WAIT_S:
                raise TimeoutError(f"{moment} did not come in {WAIT_S:.0f} s")
            time.sleep(pause)

    if moment.kind == "directory":
        wait_for(out.exists, 0.001)
    elif moment.kind == "end":
        wait_for(lambda: _last_step(out / "evaluations.csv") >= moment.step, 0.02)
    elif moment.kind != "start":
        wait_for(lambda: newest_step(out) >= moment.step, 0.005)
    if moment.kind == "save":
        wait_for(lambda: bool(unfinished(out) - old), 0.001)
    elif moment.kind == "rows":
        before = [_size(p) for p in records]
        wait_for(lambda: any(_size(p) > b for p, b in zip(records, before, strict=True)), 0.002)
    elif moment.kind == "steps":  # a session that has got through its start
        saved = _mtime(out / "status.json")
        wait_for(lambda: _mtime(out / "status.json") != saved, 0.005)
    if not ended():
        time.sleep(moment.after)


def session(case: Case, out: Path, moment: Moment, number: signal.Signals, tally: Tally) -> bool:
    """Start the command and strike at a moment. Returns False if the run ended by itself before."""
    log = out.parent / f"{out.name}.log"
    old, printed = unfinished(out), _size(log)
    status = _mtime(out / "status.json")
    process = start(case.command(out), log)
    try:
        wait(moment, functools.partial(_ended, process), out)
    except TimeoutError as error:
        tally.failures.append(str(error))
    if _ended(process):
        if process.returncode != 0:
            tally.failures.append(f"status {process.returncode} after {tally.struck.total()} kills: {_tail(log)}")
        return False
    _strike(process, number)
    tally.struck[moment.kind] += 1
    tally.in_save += bool(unfinished(out) - old)
    begun = _mtime(out / "status.json") > status  # a signal during imports ends any process
    if number is not signal.SIGKILL and begun:
        said = log.read_bytes()[printed:].decode(errors="replace")
        tally.complaints += stopped_badly(process.returncode, said, out, number)
    return True


def torment(case: Case, out: Path, kills: int, draw: random.Random, number: signal.Signals) -> Tally:
    """Train one run with so many kills."""
    planned, tally = moments(kills, case.steps, draw), Tally()
    while planned and not tally.failures:
        if session(case, out, planned[0], number, tally):
            planned.pop(0)
        else:  # the run is complete, but this kill and the others are still to be had
            planned[0] = Moment("start", -1, draw.uniform(0.0, KINDS["start"][0]))
    if not tally.failures:
        log = out.parent / f"{out.name}.log"
        if (status := start(case.command(out), log).wait()) != 0:
            tally.failures.append(f"status {status} of the last session: {_tail(log)}")
    return tally


def whole(case: Case, out: Path) -> float:
    """Train the run without interruption. Returns the seconds."""
    shutil.rmtree(out, ignore_errors=True)
    began, log = time.monotonic(), out.parent / f"{out.name}.log"
    log.unlink(missing_ok=True)
    if start(case.command(out), log).wait() != 0:
        raise SystemExit(f"{out}: {_tail(log)}")
    return time.monotonic() - began


def kill(name: str, case: Case, directory: Path, kills: int, seed: int, number: signal.Signals) -> dict[str, Any]:
    """One row: the run without interruption, the run with kills, and whether they are the same."""
    expected, out = directory / name / "whole", directory / name / number.name
    shutil.rmtree(directory / name, ignore_errors=True)
    expected.parent.mkdir(parents=True)
    seconds = whole(case, expected)
    began = time.monotonic()
    tally = torment(case, out, kills, random.Random(f"{seed} {name}"), number)
    compared, differ = ("", []) if tally.failures else compare(expected, out)
    problems = tally.failures + tally.complaints + differ
    same = not tally.failures and not differ
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(tally.struck.items()))
    text = "; ".join(problems[:4]) or f"moments: {kinds}; compared: {compared}"
    text += f" ({len(problems)} problems)" if len(problems) > 4 else ""
    total = tally.struck.total()
    print(f"{name}: {total} kills, {tally.in_save} in a save, {text if problems else 'identical'}", end="", flush=True)
    print(f"; {seconds:.0f} s without, {time.monotonic() - began:.0f} s with them", flush=True)
    return {
        "case": name, "outcome": "identical" if same else "not identical", "ok": not problems, "kills": total,
        "in_save": tally.in_save, "resumed": total - len(tally.failures), "identical": total if same else 0,
        "detail": text, "seed": seed,
    }  # fmt: skip


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def _strike(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if number is signal.SIGKILL:
        os.killpg(process.pid, number)
        process.wait()
        return
    process.send_signal(number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stopped_badly(status: int | None, said: str, out: Path, number: signal.Signals) -> list[str]:
    """What is wrong with how a run that had begun stopped at a signal."""
    if json.loads((out / "status.json").read_text(encoding="utf-8"))["state"] == "finished":  # it had only to end
        return []
    problems = []
    if status != 128 + number:
        problems.append(f"status {status} after {number.name} instead of {128 + number}")
    if "Traceback" in said:
        problems.append(f"a traceback after {number.name}")
    if not any("resume" in line and str(out) in line for line in said.splitlines()):
        problems.append("it did not say how to go on")
    if not checkpoints(out):
        problems.append("it left no checkpoint")
    return problems


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _last_step(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    first = lines[-1].partition(",")[0] if lines else ""
    return int(first) if first.isdigit() else -1


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace", encoding="utf-8").splitlines()
    return lines[-1][:300] if lines else "no output"
