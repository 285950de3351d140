"""How every worker of the speed benchmarks measures: one window of a warm loop. Needs nothing but Python.

A worker trains; after every turn of its loop it calls `Stopwatch.tick`. Once warm it prints READY (with `--wait`) and
its window opens when a line arrives on stdin, so that several processes measure during the same window. At the end it
prints one line of JSON. What its numbers are:

    steps, updates   turns of the loop in the window, and gradient updates. They must stand in the stated ratio.
    steps_per_s      steps / seconds.
    cpu_s_per_s      CPU seconds of the whole process per second: shows that the thread limit really held (about 1.0
                     for one thread), or that somebody else took the core (well below 1.0).
    slowest_step_s   the longest turn; a recompilation inside the window would show here.
    first_update_s   from the start of the process to the end of the turn with its first update: imports, random
                     steps, compilation. Not in the window.
    compile_s        by how much the turns before the window were longer than the slowest turn in it, summed:
                     compilation, where there is any. Not in the window.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

STARTED = time.monotonic()  # workers import this module first


class Reading(NamedTuple):
    """What the clocks and counters say at one end of the window."""

    time: float
    cpu: float
    steps: int
    updates: int


class Stopwatch:
    """Counts the turns of a training loop in a window of `seconds` that opens at step `warm_at`.

    ratio: updates for each step that the loop must do. sync: waits for queued device work, so that both ends of the
    window are true.
    """

    def __init__(
        self,
        warm_at: int,
        seconds: float,
        wait: bool = False,
        sync: Callable[[], object] = lambda: None,
        ratio: float = 1.0,
    ) -> None:
        self.warm_at, self.seconds, self.wait, self.sync, self.ratio = warm_at, seconds, wait, sync, ratio
        self.first_update_s: float | None = None
        self.before: list[float] = []  # seconds of each turn before the window
        self.slowest = 0.0
        self.opened: Reading | None = None
        self.closed: Reading | None = None
        self.begin()

    def begin(self) -> None:
        """The first turn begins now; without this, it begins where the watch is made."""
        self._last = time.monotonic()

    def tick(self, steps: int, updates: int) -> bool:
        """Called once a turn with the steps and updates done so far; True when the window is over."""
        now = time.monotonic()
        turn, self._last = now - self._last, now
        if self.opened is None:
            self.before.append(turn)
            if updates and self.first_update_s is None:
                self.first_update_s = now - STARTED
            if steps >= self.warm_at:
                self._barrier()
                self.opened = self._read(steps, updates)
                self._last = self.opened.time
            return False
        self.slowest = max(self.slowest, turn)
        if now - self.opened.time < self.seconds:
            return False
        self.closed = self._read(steps, updates)
        return True

    def result(self) -> dict[str, Any]:
        if self.opened is None or self.closed is None:
            raise SystemExit("training ended before the window did: raise its number of steps")
        seconds, cpu, steps, updates = (b - a for a, b in zip(self.opened, self.closed, strict=True))
        if abs(updates - self.ratio * steps) >= 1:  # a window may cut the steps between two updates
            raise SystemExit(f"{steps} steps but {updates} updates: not {self.ratio:g} updates per step")
        return {
            "steps": steps,
            "updates": updates,
            "seconds": round(seconds, 4),
            "steps_per_s": round(steps / seconds, 2),
            "cpu_s_per_s": round(cpu / seconds, 3),
            "slowest_step_s": round(self.slowest, 4),
            "first_update_s": round(self.first_update_s or 0.0, 2),
            "compile_s": round(sum(max(turn - self.slowest, 0.0) for turn in self.before), 2),
        }

    def _barrier(self) -> None:
        if not self.wait:
            return
        say("READY")
        if not sys.stdin.readline():
            raise SystemExit("stdin closed while waiting for the start")

    def _read(self, steps: int, updates: int) -> Reading:
        self.sync()
        return Reading(time.monotonic(), time.process_time(), steps, updates)


def say(line: str) -> None:
    """Writes a protocol line to the real stdout; everything else that prints is sent to stderr."""
    print(line, file=sys.__stdout__, flush=True)


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables that hold numerical libraries to so many threads, if set before they are imported."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    if threads == 1:
        limits["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return limits


def limit(threads: int, cores: list[int]) -> None:
    """Holds this process to `threads` threads and `cores`; must run before numpy, torch or jax are imported."""
    os.environ |= thread_limits(threads)
    # XLA sizes its pool by the cores it may run on, so affinity is the only limit it cannot pass by
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags that all workers share."""
    parser.add_argument("--algorithm", default="sac")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--size", default="", help="hidden layers and batch, such as 64x64:32")
    parser.add_argument("--what", default="loop", choices=("loop", "update"), help="what a turn is")
    parser.add_argument("--every", type=int, default=1, help="environment steps for each update of the loop")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the window")
    parser.add_argument("--warmup-steps", type=int, default=300, help="steps with updates before the window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="", help="pin to these cores, such as 0,1 (default: no pinning)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--wait", action="store_true", help="print READY when warm, start on a line from stdin")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a worker, whose process is held to its threads and cores from here on."""
    args = arguments(parser).parse_args()
    limit(args.threads, [int(core) for core in args.cores.split(",") if core])
    return args
