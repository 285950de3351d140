"""Damaged files: every case copies an unfinished run with its checkpoints, damages it and repeats the command."""

from __future__ import annotations

import csv
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_cases import PREVIOUS, REFUSED, ROWS_LOST, SAME, Damage, damages
from fault_damage import sentinel
from fault_runs import SELDOM, Attempt, Case, attempt, begin, checkpoints, compare, digests

CASE = Case(
    "dqn",
    260,
    "--env CartPole-v1 --seeds 0-1 --prioritized --n-step 2 --learning-starts 100 --train-every 4 --utd 0.25"
    " --hidden 16 --batch-size 16 --log-every 20 --eval-every 80 --eval-episodes 2 --keep-checkpoints 3"
    " --no-tensorboard",
    minutes=0.002,
)
KILL_AT = 200
LIMIT_S = 30.0


def copy(base: Path, out: Path) -> None:
    """A copy of a run in which files with several names still have them."""
    shutil.rmtree(out, ignore_errors=True)
    done: dict[int, Path] = {}
    for path in sorted(base.rglob("*")):
        target = out / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif (inode := path.stat().st_ino) in done:
            os.link(done[inode], target)
        else:
            done[inode] = Path(shutil.copy2(path, target))


def unfinished_run(case: Case, out: Path, steps: int, count: int = 3) -> None:
    """A run that was killed when it had so many checkpoints and had come so far."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.parent / f"{out.name}.log"
    log.write_text("", encoding="utf-8")
    process = begin(case.command(out), log)
    while process.exitcode is None and not (
        len(found := checkpoints(out)) >= count and int(found[-1].name[:9]) >= steps
    ):
        time.sleep(0.005)
    process.kill()
    process.join()
    if len(checkpoints(out)) < 2:
        raise SystemExit(f"{out}: not enough checkpoints to begin with: {log.read_text(encoding='utf-8')}")


def judge(tried: Attempt, damage: Damage, out: Path, whole: Path, before: dict[str, str]) -> str:
    """What came of a case, in the words at the top of this file, or what is wrong."""
    if sentinel(out).exists():
        return "CODE EXECUTED"
    if tried.status is None:
        return f"no end within {LIMIT_S:.0f} s"
    if tried.refused:
        after = digests(out)
        touched = [k for k, digest in before.items() if after.get(k) != digest and k != "status.json"]
        return f"refused, but changed {touched[0]}" if touched else REFUSED
    if tried.status != 0 or "Traceback" in tried.output:
        return f"status {tried.status}: {tried.last_line[:160]}"
    return SAME if damage.verb == "evaluate" else _result(tried, out, whole)


def _result(tried: Attempt, out: Path, whole: Path) -> str:
    noticed = "broken" in tried.output
    try:
        differ = compare(whole, out).differences
    except (OSError, ValueError, LookupError, csv.Error) as error:
        return f"records that cannot be read: {error}"
    if not differ:
        return PREVIOUS if noticed else SAME
    files = {text.split(":")[0] for text in differ}
    if files <= {"metrics.csv", "evaluations.csv"} and all(name in tried.output for name in files):
        return ROWS_LOST
    return f"another result, {'with' if noticed else 'without'} a word: {differ[0]}"


def examine(damage: Damage, base: Path, whole: Path, out: Path) -> dict[str, Any]:
    """One row of the table."""
    copy(base, out)
    damage.apply(out)
    before = digests(out)
    words = CASE.command(out, *SELDOM) if damage.verb == "train" else ["evaluate", str(out), "--episodes", "1"]
    tried = attempt(words, limit_s=LIMIT_S)
    outcome = judge(tried, damage, out, whole, before)
    said = tried.errors[-1] if tried.errors else next((li for li in tried.output.splitlines() if "broken" in li), "")
    said = said.replace(str(out), "RUN")[:200]
    ok = outcome in damage.allowed
    print(f"{'ok  ' if ok else 'FAIL'} {damage.name}: {outcome}{'' if ok else f' [{said}]'}", flush=True)
    return {"case": damage.name, "outcome": outcome, "ok": ok, "detail": said}


def run(directory: Path, seed: int, only: list[str] | None) -> Iterator[dict[str, Any]]:
    """All cases, or those with one of `only` in their names."""
    place = directory / "files"
    whole, base = place / "whole", place / "base"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    tried = attempt(CASE.command(whole, *SELDOM))
    if tried.status != 0:
        raise SystemExit(f"{whole}: {tried.output}")
    unfinished_run(CASE, base, KILL_AT)
    for damage in damages(base, random.Random(seed)):
        if not only or any(part in damage.name for part in only):
            yield examine(damage, base, whole, place / "case")
            shutil.rmtree(place / "case", ignore_errors=True)
            shutil.rmtree(sentinel(place / "case"), ignore_errors=True)
