"""Time to the first update: from the start of a process to the end of the first compiled update of a population.

    git worktree add ../before COMMIT
    python benchmarks/startup.py ../before --csv benchmarks/results/startup.csv

Ends of a run, each in a process of its own, of this checkout and of the other in turns:
    cold      every cache of compiled code is empty
    warm      the caches that `cold` has left
    second    in the process of `warm`: another population of equal shapes, from the call of `train` on
    shipped   a process that finds a copy of those caches in another place, as a package would bring them

Imports, the environments and the networks are made within that time; warm-up steps are too few to count. seconds: the
median of the rounds, wall clock; low, high: the fastest and the slowest; cpu: processor seconds of the process and of
its compilers, the median. Bytecode of installed packages is there in any case. Rows are appended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
TASKS = {"sac": ("HalfCheetah-v5", 4), "dqn": ("CartPole-v1", 8)}
COLUMNS = ["algorithm", "env", "agents", "start", "seconds", "low", "high", "cpu", "rounds", "commit", "threads"]
COLUMNS += ["device", "versions", "command"]


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(x.ru_utime + x.ru_stime for x in spent)


def work(algorithm: str, began: float) -> None:
    """Train two populations with the deeprl that PYTHONPATH names, each up to its first update. began: monotonic s."""
    import deeprl

    env, agents = TASKS[algorithm]
    own: dict[str, Any] = {"train_every": 1} if algorithm == "dqn" else {}
    found = []
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        for number in range(2):
            seeds = list(range(number * agents, number * agents + agents))
            settings: dict[str, Any] = {
                "env": env,
                "seeds": seeds,
                "learning_starts": 4,
                "steps": 4_000,
                "tensorboard": False,
            } | own
            spent = cpu_seconds() if number else 0.0
            deeprl.train(
                algorithm, out=f"{out}/{number}", compile="on", callback=lambda run: run.updates > 0, **settings
            )
            found += [time.monotonic() - began, cpu_seconds() - spent]
            began = time.monotonic()
    print(json.dumps(found), file=sys.__stdout__)


def start(checkout: Path, algorithm: str, caches: Path, threads: int) -> tuple[list[float], list[float]]:
    """Seconds and processor seconds to the first update of the first and of the second population of a process."""
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "DEEPRL_CACHE": str(caches / "deeprl")}
    (caches / "tmp").mkdir(exist_ok=True)
    env |= {"TMPDIR": str(caches / "tmp")}  # where torch keeps its precompiled headers
    command = [sys.executable, "-W", "ignore", str(HERE / "benchmarks/startup.py"), "--work", algorithm]
    command += ["--began", repr(time.monotonic())]
    done = subprocess.run(command, env=env, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    first, first_cpu, second, second_cpu = json.loads(done.stdout.splitlines()[-1])
    return [first, first_cpu], [second, second_cpu]


def round_of(checkout: Path, algorithm: str, threads: int) -> dict[str, list[float]]:
    """One start of each kind, with caches of its own."""
    with tempfile.TemporaryDirectory() as folder:
        caches = Path(folder) / "own"
        caches.mkdir()
        cold, _ = start(checkout, algorithm, caches, threads)
        warm, second = start(checkout, algorithm, caches, threads)
        shutil.copytree(caches, Path(folder) / "brought")
        shutil.rmtree(caches)
        shipped, _ = start(checkout, algorithm, Path(folder) / "brought", threads)
    return {"cold": cold, "warm": warm, "second": second, "shipped": shipped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="another checkout, to be timed in turns with this one")
    parser.add_argument("--algorithm", choices=TASKS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="where the rows go; without it they are only printed")
    parser.add_argument("--work", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.began)
        return
    from against import commit_of
    from speed_rows import append, device_name
    from stopwatch import versions

    checkouts = [HERE] + ([args.before.resolve()] if args.before else [])
    for algorithm in args.algorithm or TASKS:
        found: dict[Path, list[dict[str, list[float]]]] = {checkout: [] for checkout in checkouts}
        for number in range(args.rounds):
            for checkout in checkouts if number % 2 == 0 else checkouts[::-1]:
                found[checkout].append(round_of(checkout, algorithm, args.threads))
                print(
                    f"{algorithm} round {number + 1}/{args.rounds} {checkout.name}: {found[checkout][-1]}", flush=True
                )
        for checkout, rounds in found.items():
            for kind in rounds[0]:
                seconds = [one[kind][0] for one in rounds]
                row = {
                    "algorithm": algorithm,
                    "env": TASKS[algorithm][0],
                    "agents": TASKS[algorithm][1],
                    "start": kind,
                    "seconds": round(statistics.median(seconds), 2),
                    "low": round(min(seconds), 2),
                    "high": round(max(seconds), 2),
                    "cpu": round(statistics.median(one[kind][1] for one in rounds), 1),
                    "rounds": args.rounds,
                    "commit": commit_of(checkout),
                    "threads": args.threads,
                    "device": device_name("cpu"),
                    "versions": versions(("torch", "gymnasium", "mujoco", "numpy")),
                    "command": f"python benchmarks/startup.py BEFORE --rounds {args.rounds} --threads {args.threads}",
                }
                print(", ".join(f"{name}: {row[name]}" for name in COLUMNS[:10]), flush=True)
                if args.csv:
                    append(args.csv, COLUMNS, row)


if __name__ == "__main__":
    main()
