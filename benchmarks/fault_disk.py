"""Disks that are full or read-only, and directories that disappear, at the start of a run and in the middle of it.

Two ways to a full disk: a small tmpfs with a file that takes the rest of it (needs the right to mount), and
RLIMIT_FSIZE, a limit on the size of each file (needs no rights). Permissions do not bind root, who gives up that
privilege in the cases about them (`obey_permissions`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fault_files import copy, unfinished_run
from fault_runs import SELDOM, Attempt, Case, attempt, begin, checkpoints, compare, end, newest_step

# Rows often, or checkpoints often, so that each kind of file can be the one that does not fit.
_DQN = "--env CartPole-v1 --seeds 0-1 --prioritized --learning-starts 100 --train-every 4 --utd 0.25 --hidden 16"
_DQN += " --batch-size 16 --eval-every 150 --eval-episodes 2"
SAVES = Case("dqn", 300, f"{_DQN} --log-every 100 --no-tensorboard", minutes=0.001)
ROWS = Case("dqn", 300, f"{_DQN} --log-every 4 --no-tensorboard", minutes=0.001)
CURVES = Case("dqn", 300, f"{_DQN} --log-every 4", minutes=0.001)


class MountError(Exception):
    """What a case needs is not allowed, or not possible here."""


class Fault(NamedTuple):
    """meet(case, base, place) damages a copy of `base` in `place` and returns what came of it and the run directory."""

    name: str
    case: Case
    meet: Callable[[Case, Path, Path], tuple[Attempt, Path]]
    checkpoint: bool = True  # the message must name the newest checkpoint, where there is one


def limit(size: int) -> None:
    """No file of this process may grow beyond this."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey_permissions() -> None:
    """Give up what lets root write to files and directories that are not writable."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the first 32 capabilities, then the others
    if library.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH (linux/capability.h)
    if library.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def allow(path: Path, write: bool) -> None:
    """Make a directory and all below it writable, or not."""
    for directory, _, files in os.walk(path, topdown=not write):
        for inner in (Path(directory), *(Path(directory, name) for name in files)):
            with contextlib.suppress(FileNotFoundError):  # the run deletes its old checkpoints meanwhile
                inner.chmod((0o755 if write else 0o555) if inner.is_dir() else (0o644 if write else 0o444))


def midway(words: list[str], out: Path, act: Callable[[], Any], before: Callable[[], Any] | None = None) -> Attempt:
    """Start a command, `act` once it has written something, and wait for its end."""
    with tempfile.TemporaryDirectory() as directory:  # not on the disk that is to fail
        log = Path(directory, "log")
        log.touch()
        sizes = _sizes(out)
        process = begin(words, log, before)
        while process.exitcode is None and _sizes(out) == sizes:
            time.sleep(0.002)
        act()
        return end(process, log)


def _sizes(out: Path) -> tuple[int, ...]:
    rows = out / "metrics.csv"
    return (newest_step(out), rows.stat().st_size if rows.exists() else 0)


# --- a limit on the size of files ---


def limited_start(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    return attempt(case.command(out), functools.partial(limit, 1_000)), out


def limited_save(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    copy(base, out)
    size = min((p / "state.pt").stat().st_size for p in checkpoints(out))
    return attempt(case.command(out), functools.partial(limit, size - 1000)), out


def limited_rows(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    copy(base, out)
    size = (out / "metrics.csv").stat().st_size
    return attempt(case.command(out, *SELDOM), functools.partial(limit, size + 300)), out


def limited_curves(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    return attempt(case.command(out, *SELDOM), functools.partial(limit, 12_000)), out


# --- a small file system ---


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """A tmpfs of so many bytes. Raises MountError where mounting is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise MountError(f"mounting {path} is not allowed")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, left: int) -> None:
    """Take all of a file system but so many bytes."""
    free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    with contextlib.suppress(OSError), (path / "filler").open("wb") as file:  # the run may be writing, too
        file.write(bytes(max(free - left, 0)))


def full_disk(case: Case, base: Path, place: Path, left: int, words: tuple[str, ...]) -> tuple[Attempt, Path]:
    """In the middle of the run all but `left` bytes of its file system are taken."""
    out = place / "disk" / "run"
    copy(base, out)
    tried = midway(case.command(out, *words), out, functools.partial(fill, place / "disk", left))
    (place / "disk" / "filler").unlink()
    return tried, out


def full_start(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "disk" / "run"
    fill(place / "disk", 0)
    tried = attempt(case.command(out))
    (place / "disk" / "filler").unlink()
    return tried, out


def full_curves(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    """TensorBoard's directory alone is on the small disk."""
    out = place / "run"
    copy(base, out)
    with small_disk(out / "tensorboard", 4_096):
        tried = attempt(case.command(out, *SELDOM))
    return tried, out


def remounted(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "disk" / "run"
    copy(base, out)

    def mount(mode: str) -> bool:
        command = ["mount", "-o", f"remount,{mode}", str(place / "disk")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    done: list[bool] = []
    tried = midway(case.command(out), out, lambda: done.extend(_until(functools.partial(mount, "ro"))))
    mount("rw")
    if not done or tried.status == 0:
        raise MountError("the run keeps a file open for writing")
    return tried, out


def _until(act: Callable[[], bool]) -> list[bool]:
    """Try for a second: it cannot be done while a file is open for writing. Empty where it never worked."""
    for _ in range(200):
        if act():
            return [True]
        time.sleep(0.005)
    return []


# --- permissions ---


def readonly_parent(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    (place / "parent").mkdir()
    allow(place / "parent", False)
    tried = attempt(case.command(place / "parent" / "run"), obey_permissions)
    allow(place / "parent", True)
    return tried, place / "parent" / "run"


def readonly_resume(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    copy(base, out)
    allow(out, False)
    tried = attempt(case.command(out), obey_permissions)
    allow(out, True)
    return tried, out


def readonly_midway(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    copy(base, out)
    allow(out, True)
    tried = midway(case.command(out), out, functools.partial(allow, out, False), obey_permissions)
    allow(out, True)
    return tried, out


# --- lost directories ---


def below_a_file(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    (place / "parent").write_text("x", encoding="utf-8")
    tried = attempt(case.command(place / "parent" / "run"))
    (place / "parent").unlink()
    return tried, place / "parent" / "run"


def moved_away(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out, aside = place / "run", place / "aside"
    copy(base, out)
    tried = midway(case.command(out), out, functools.partial(out.rename, aside))
    if out.exists():
        return tried._replace(status=None, output=f"deeprl made {sorted(p.name for p in out.rglob('*'))} anew"), out
    aside.rename(out)
    return tried, out


def deleted(case: Case, base: Path, place: Path) -> tuple[Attempt, Path]:
    out = place / "run"
    copy(base, out)
    tried = midway(case.command(out), out, functools.partial(_delete, out))
    if out.exists():
        return tried._replace(status=None, output=f"deeprl made {sorted(p.name for p in out.rglob('*'))} anew"), out
    return tried, out


def _delete(out: Path) -> None:
    out.rename(out.parent / "deleted")  # at once
    shutil.rmtree(out.parent / "deleted", ignore_errors=True)  # the run may be deleting, too


FAULTS = [
    Fault("full at the start (limit on files)", SAVES, limited_start),
    Fault("full in a checkpoint (limit on files)", SAVES, limited_save),
    Fault("full in a row (limit on files)", ROWS, limited_rows),
    Fault("full in TensorBoard's file (limit on files)", CURVES, limited_curves),
    Fault("full at the start (tmpfs)", SAVES, full_start),
    Fault("full in a checkpoint (tmpfs)", SAVES, functools.partial(full_disk, left=16_384, words=())),
    Fault("full in a row (tmpfs)", ROWS, functools.partial(full_disk, left=0, words=SELDOM)),
    Fault("full in a checkpoint or a row (tmpfs)", ROWS, functools.partial(full_disk, left=0, words=())),
    Fault("full in TensorBoard's file (tmpfs)", CURVES, full_curves),
    Fault("read-only in the middle (tmpfs)", SAVES, remounted),
    Fault("read-only parent directory", SAVES, readonly_parent),
    Fault("read-only at a resume", SAVES, readonly_resume, checkpoint=False),
    Fault("read-only in the middle", SAVES, readonly_midway),
    Fault("parent directory is a file", SAVES, below_a_file),
    Fault("moved away in the middle, checkpoint next", SAVES, moved_away, checkpoint=False),
    Fault("moved away in the middle, row next", ROWS, moved_away, checkpoint=False),
    Fault("deleted in the middle, checkpoint next", SAVES, deleted),
    Fault("deleted in the middle, row next", ROWS, deleted),
]


def judge(tried: Attempt, out: Path, fault: Fault) -> list[str]:
    """What is wrong with how a run ended."""
    problems = []
    if tried.status != 2 or tried.errors != [tried.last_line]:
        problems.append(
            f"status {tried.status} instead of 2, {len(tried.errors)} lines of error: {tried.last_line[:200]}"
        )
    if "Traceback" in tried.output:
        problems.append("a traceback")
    said = " ".join(tried.errors) or tried.last_line
    if str(out) not in said and str(out.parent) not in said:
        problems.append("does not name the file or directory")
    step = newest_step(out)
    if fault.checkpoint and step >= 0 and not re.search(rf"\b0*{step}\b|\b{step:,}\b", said):
        problems.append("does not name the newest checkpoint")
    return problems


def examine(fault: Fault, base: Path, whole: Path, place: Path) -> dict[str, Any]:
    """One row of the table. Raises MountError where a mount is needed and not allowed."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with small_disk(place / "disk", 2**22) if "(tmpfs)" in fault.name else contextlib.nullcontext():
        tried, out = fault.meet(fault.case, base, place)
        problems = judge(tried, out, fault)
        after = attempt(fault.case.command(out, *SELDOM))
        if after.status == 0:
            problems += [f"afterwards: {text}" for text in compare(whole, out).differences[:2]]
        else:
            problems.append(f"afterwards status {after.status}: {after.last_line[:200]}")
    said = (tried.errors[-1] if tried.errors else tried.last_line).replace(str(place), "PLACE")
    outcome = "; ".join(problems).replace(str(place), "PLACE") or "one line, then the undisturbed result"
    print(f"{'FAIL' if problems else 'ok  '} {fault.name}: {outcome} [{said[:300]}]", flush=True)
    return {"case": fault.name, "outcome": outcome, "ok": not problems, "detail": said[:300]}


def run(directory: Path, seed: int, only: list[str] | None) -> Iterator[dict[str, Any]]:
    """All cases, or those with one of `only` in their names."""
    faults = [f for f in FAULTS if not only or any(part in f.name for part in only)]
    home = directory / "disk"
    shutil.rmtree(home, ignore_errors=True)
    made: dict[Case, tuple[Path, Path]] = {}
    for fault in faults:
        if fault.case not in made:
            made[fault.case] = home / f"base_{len(made)}", home / f"whole_{len(made)}"
            unfinished_run(fault.case, made[fault.case][0], 150, 2)
            if attempt(fault.case.command(made[fault.case][1], *SELDOM)).status != 0:
                raise SystemExit("the undisturbed run failed")
        try:
            yield examine(fault, *made[fault.case], home / "case")
        except MountError as error:
            print(f"left out: {fault.name}: {error}", flush=True)
