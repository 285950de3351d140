"""Runs that are killed again and again at random moments, or stopped by a signal, and continued by the same command.

Moments are drawn from a generator with a stated seed. Each waits until the newest checkpoint has reached a step drawn
from the whole run, so that the kills are spread over it and every session goes on from where another ended; then for
one of `KINDS`; then for a random time.
"""

from __future__ import annotations

import functools
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


class Outcome(NamedTuple):
    """struck: kills of a living process, by kind of moment. resumed: of the sessions after them, those that went on."""

    struck: Counter[str]
    in_save: int
    resumed: int
    compared: str
    problems: list[str]


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


def torment(case: Case, out: Path, kills: int, draw: random.Random, number: signal.Signals) -> Outcome:
    """Train one run with so many kills."""
    planned = moments(kills, case.steps, draw)
    log = out.parent / f"{out.name}.log"
    struck: Counter[str] = Counter()
    in_save, resumed = 0, 0
    problems: list[str] = []
    while planned and not problems:
        moment = planned.pop(0)
        old, printed = unfinished(out), log.stat().st_size if log.exists() else 0
        running = _mtime(out / "status.json")
        process = start(case.command(out), log)
        wait(moment, functools.partial(_ended, process), out)
        if process.poll() is None:
            _strike(process, number)
            struck[moment.kind] += 1
            in_save += bool(unfinished(out) - old)
            resumed += 1
            if number is not signal.SIGKILL:
                said = log.read_bytes()[printed:].decode(errors="replace")
                looping = _mtime(out / "status.json") > running
                problems += stopped_badly(process.returncode, said, out, number) if looping else []
        elif process.returncode != 0:
            problems.append(
                f"status {process.returncode} of a session after {sum(struck.values())} kills: {_tail(log)}"
            )
        else:  # finished before the moment came: the run is complete, but this and the other kills are still to be had
            planned.insert(0, Moment("start", -1, draw.uniform(0.0, KINDS["start"][0])))
    if not problems:
        process = start(case.command(out), log)
        if process.wait() != 0:
            problems.append(f"status {process.returncode} of the last session: {_tail(log)}")
    return Outcome(struck, in_save, resumed, "", problems)


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
    outcome = torment(case, out, kills, random.Random(f"{seed} {name}"), number)
    problems = list(outcome.problems)
    compared = ""
    if not problems:
        compared, problems = compare(expected, out)
    same = not problems
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.struck.items()))
    text = f"moments: {kinds}; compared: {compared}" if same else "; ".join(problems[:4])
    text += f" ({len(problems)} problems)" if len(problems) > 4 else ""
    total = sum(outcome.struck.values())
    print(f"{name}: {total} kills, {outcome.in_save} in a save, {'identical' if same else text}", end="", flush=True)
    print(f"; {seconds:.0f} s without, {time.monotonic() - began:.0f} s with them", flush=True)
    return {
        "case": name, "outcome": "identical" if same else "not identical", "ok": same, "kills": total,
        "in_save": outcome.in_save, "resumed": outcome.resumed - bool(outcome.problems),
        "identical": total if same else 0, "detail": text, "seed": seed,
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
    if status == 0:  # it ended by itself meanwhile
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
    lines = path.read_text().splitlines() if path.exists() else []
    first = lines[-1].partition(",")[0] if lines else ""
    return int(first) if first.isdigit() else -1


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1][:300] if lines else "no output"
