"""Speed of this checkout beside another one of deeprl: the whole training loop, in turns.

    git worktree add ../before COMMIT
    python benchmarks/against.py ../before --algorithm sac --csv benchmarks/results/against.csv

Both train the same population (`speed_tasks.py`) in a process each, which stays: one goes on for a window of
`--seconds` while the other waits, then they change places; every second round begins with the other one. Imports,
random steps and compilation lie before the first window. ratio: this checkout's steps per second over the other's in
the same round, the median over the rounds; low, high: an interval for that median by order statistics, of at least 95 %
for 6 rounds or more. Rows are appended.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
COLUMNS = [
    "algorithm",
    "env",
    "agents",
    "rounds",
    "seconds",
    "steps_per_s",
    "steps_per_s_before",
    "ratio",
    "low",
    "high",
]
COLUMNS += ["commit", "before", "threads", "device", "versions", "command"]


class Turns:
    """The callback of a run that trains only while it is its turn. `train` ends when nobody asks any more."""

    def __init__(self, warm_at: int, seconds: float):
        self.warm_at, self.seconds = warm_at, seconds
        self.opened: tuple[float, int] | None = None

    def __call__(self, run: Any) -> bool:
        if run.step < self.warm_at:
            return False
        if self.opened is not None:
            began, step = self.opened
            passed = time.monotonic() - began
            if passed < self.seconds:
                return False
            print((run.step - step) / passed, file=sys.__stdout__, flush=True)
        else:
            print("READY", file=sys.__stdout__, flush=True)
        if not sys.stdin.readline():
            return True
        self.opened = time.monotonic(), run.step
        return False


def work(args: argparse.Namespace) -> None:
    """Train with the deeprl that PYTHONPATH names."""
    import torch
    from speed_tasks import LEARNING_STARTS, task
    from speed_worker import make_config

    from deeprl.api import algorithm_module

    torch.set_num_threads(args.threads)
    args.every, args.device, args.seed = 10 if args.algorithm == "dqn" else 1, "cpu", 0
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        config = make_config(args, task(args.algorithm), out)
        warm_at = args.warmup_steps + (LEARNING_STARTS if hasattr(config, "learning_starts") else 0)
        algorithm_module(args.algorithm).train(config, callback=Turns(warm_at, args.seconds))


def started(checkout: Path, args: argparse.Namespace) -> subprocess.Popen[str]:
    flags = f"--work --algorithm {args.algorithm} --agents {args.agents} --seconds {args.seconds}"
    flags += f" --threads {args.threads} --warmup-steps {args.warmup_steps}"
    command = [sys.executable, "-W", "ignore", str(HERE / "benchmarks/against.py"), *flags.split()]
    command += [word for pair in args.set for word in ("--set", pair)]
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(args.threads)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(command, env=env, text=True, **pipes)
    if answer(worker) != "READY":
        raise SystemExit(f"{checkout}: the worker ended")
    return worker


def answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def turn(worker: subprocess.Popen[str], agents: int) -> float:
    """Steps of all agents per second of one window."""
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return agents * float(answer(worker))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """An interval that holds the median with at least this probability: the narrowest pair of order statistics."""
    ordered, n = sorted(values), len(values)
    outside = 0.0
    rank = 0
    while (outside := outside + math.comb(n, rank) * 0.5**n) <= (1.0 - level) / 2.0:
        rank += 1
    return ordered[max(rank - 1, 0)], ordered[min(n - rank, n - 1)]


def commit_of(checkout: Path) -> str:
    found = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--algorithm", default="sac", help="sac, td3, dqn, iql")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup-steps", type=int, default=300, help="steps with updates before the first window")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of deeprl's Config")
    parser.add_argument("--csv", type=Path, help="where the row goes; without it it is only printed")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    if args.before is None:
        parser.error("name the other checkout")
    from speed_rows import append, device_name
    from speed_tasks import task
    from stopwatch import versions

    here, before = started(HERE, args), started(args.before.resolve(), args)
    rates: list[tuple[float, float]] = []
    for index in range(args.rounds):
        order = (here, before) if index % 2 == 0 else (before, here)
        found = {id(worker): turn(worker, args.agents) for worker in order}
        rates.append((found[id(here)], found[id(before)]))
        print(f"round {index + 1}/{args.rounds}: {rates[-1][0]:,.1f} and {rates[-1][1]:,.1f}", flush=True)
    for worker in (here, before):
        worker.communicate()
    ratios = [a / b for a, b in rates]
    low, high = interval(ratios)
    named = ["algorithm", "agents", "rounds", "seconds", "threads"]
    words = " ".join(f"--{name} {getattr(args, name)}" for name in named)
    row = {
        "algorithm": args.algorithm,
        "env": task(args.algorithm).env,
        "agents": args.agents,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "steps_per_s": round(statistics.median(a for a, _ in rates), 1),
        "steps_per_s_before": round(statistics.median(b for _, b in rates), 1),
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "commit": commit_of(HERE),
        "before": commit_of(args.before),
        "threads": args.threads,
        "device": device_name("cpu"),
        "versions": versions(("torch", "gymnasium", "mujoco", "numpy")),
        "command": f"python benchmarks/against.py BEFORE {words}" + "".join(f" --set {pair}" for pair in args.set),
    }
    print(f"{row['ratio']} ({row['low']} to {row['high']})")
    if args.csv:
        append(args.csv, COLUMNS, row)


if __name__ == "__main__":
    main()
