"""One turn of a launch mode: its processes are started, warmed up, measured in the same window, and gone."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speed_modes import Mode
from stopwatch import thread_limits

TIMEOUT = 900.0  # seconds that one turn may take in all, warm-up included
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}


class ModeFailed(Exception):  # noqa: N818
    """A mode that gave no number; the message has the last words of its processes."""


def busy_seconds() -> float:
    """CPU seconds that this machine has been busy so far, time stolen by its host included; 0 where unknown."""
    with contextlib.suppress(OSError):
        ticks = [
            int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split()[1:9]
        ]  # of all cores together
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # 3 and 4: idle, waiting for a disk
    return 0.0


@contextlib.contextmanager
def started(mode: Mode) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a mode, in a folder for what simulators leave behind; gone after the block, killed if hung."""
    workers: list[subprocess.Popen[str]] = []
    hung = threading.Event()

    def kill() -> None:
        for worker in workers:
            if worker.poll() is None:  # each leads its own group, so that its compile workers go with it
                os.killpg(worker.pid, signal.SIGKILL)

    def give_up() -> None:
        hung.set()
        kill()

    watchdog = threading.Timer(TIMEOUT, give_up)
    with tempfile.TemporaryDirectory() as folder:
        try:
            watchdog.start()
            limits = os.environ | thread_limits(mode.threads)  # here as well: eager.py imports torch at once
            for index, command in enumerate(mode.commands):
                with open(f"{folder}/{index}.err", "w", encoding="utf-8") as errors:
                    workers.append(subprocess.Popen(command, stderr=errors, cwd=folder, env=limits, **PIPES))
            yield workers
        except (EOFError, BrokenPipeError):
            ends = "hung" if hung.is_set() else f"died ({ends_of(workers)})"
            told = [path.read_text(encoding="utf-8")[-3000:] for path in sorted(Path(folder).glob("*.err"))]
            raise ModeFailed(f"{mode.name}, {mode.agents} agents: {ends}\n" + "\n".join(told)) from None
        finally:
            watchdog.cancel()
            kill()
            for worker in workers:
                with contextlib.suppress(BrokenPipeError):
                    worker.communicate()


def ends_of(workers: list[subprocess.Popen[str]]) -> str:
    """How the processes that have failed ended."""
    codes = []
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):  # its stdout closes a moment before it ends
            codes.append(worker.wait(5))
    failed = [f"signal {-code}" if code < 0 else f"exit status {code}" for code in codes if code]
    return ", ".join(failed) or "without a result"


def expect(worker: subprocess.Popen[str], start: str) -> str:
    for line in worker.stdout or ():
        if line.startswith(start):
            return line
    raise EOFError


def turn(mode: Mode, seconds: float) -> dict[str, Any]:
    """One window of one mode, summed over its processes."""
    with started(mode) as workers:
        for worker in workers:
            expect(worker, "READY")
        began, busy = time.monotonic(), busy_seconds()
        for worker in workers:
            print("go", file=worker.stdin, flush=True)
        time.sleep(seconds)
        busy = (busy_seconds() - busy) / (time.monotonic() - began)  # before the workers tidy up
        results: list[dict[str, Any]] = [json.loads(expect(worker, "{")) for worker in workers]
        for worker in workers:
            worker.wait()  # nothing may still run when the next mode starts
    joined = results[0]
    for name in ("steps", "updates", "steps_per_s", "cpu_s_per_s", "flops_per_s"):
        joined |= {name: sum(result[name] for result in results)} if name in joined else {}
    for name in ("slowest_step_s", "first_update_s", "compile_s"):
        joined |= {name: max(result[name] for result in results)}
    return joined | {"other_load": max(busy - joined["cpu_s_per_s"], 0.0)}


def quiet_turn(mode: Mode, args: argparse.Namespace, label: str) -> dict[str, Any]:
    """A turn while the rest of the machine was quiet; which one counts never depends on how fast it was."""
    turns: list[dict[str, Any]] = []
    while not turns or (turns[-1]["other_load"] > args.quiet and len(turns) <= args.retries):
        turns.append(found := turn(mode, args.seconds))
        print(
            f"{label}  {mode.name:<42} {mode.agents:>3} agents  {found['steps_per_s']:9.1f} steps/s  "
            f"{found['cpu_s_per_s']:.2f} cores  slowest turn {found['slowest_step_s'] * 1e3:.0f} ms  "
            f"slow start {found['compile_s']:.0f} s  other load {found['other_load']:.2f}",
            flush=True,
        )
    return min(turns, key=lambda one: float(one["other_load"]))
