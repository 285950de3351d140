"""Calls of one loaded policy from several threads of a process: how many a second, and are their actions right?

    python benchmarks/policy_threads.py [--algorithm sac] [--threads 1,8] [--calls 10_000] [--csv FILE.csv]

A short run is trained, and `deeprl.load`ed. Each thread asks for the actions of observations of its own, one at a time,
`--calls` times; `wrong` are those that differ from what the policy gave before, without threads, and from what it gives
afterwards. calls_per_s counts those of all threads together; PyTorch itself computes with one thread. `--interval` is
the time after which the interpreter goes to the next thread (its own default is 0.005 s). Rows are appended.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_rows import append

import deeprl
from deeprl.api import Policy
from deeprl.run import provenance

COLUMNS = ["threads", "calls_per_s", "wrong", "algorithm", "commit", "torch", "device", "calls", "interval", "command"]
ENVS = {"dqn": "CartPole-v1"}


def trained(algorithm: str, folder: str) -> Policy:
    """The policy of a run with the algorithm's own networks and normalisation of observations."""
    few: dict[str, Any] = {"steps": 60, "learning_starts": 30, "batch_size": 8, "eval_episodes": 0, "compile": "off"}
    few |= {"env": ENVS.get(algorithm, "Pendulum-v1"), "threads": 1, "tensorboard": False, "out": f"{folder}/run"}
    return deeprl.load(deeprl.train(algorithm, **few).directory)


def measure(policy: Policy, threads: int, calls: int) -> tuple[float, int]:
    """Calls a second of so many threads, `calls` each, and how many actions were wrong."""
    shape = (threads, 16, *policy.spec.obs_shape)
    obs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = [[policy(row) for row in rows] for rows in obs]
    wrong, together = [0] * threads, threading.Barrier(threads + 1)

    def play(number: int) -> None:
        own, right = list(obs[number]), expected[number]
        together.wait()
        for i in range(calls):
            wrong[number] += not np.array_equal(policy(own[i % 16]), right[i % 16])
        together.wait()

    for number in range(threads):
        threading.Thread(target=play, args=(number,)).start()
    together.wait()
    began = time.perf_counter()
    together.wait()
    seconds = time.perf_counter() - began
    after = sum(
        not np.array_equal(policy(row), right)
        for rows, rights in zip(obs, expected, strict=True)
        for row, right in zip(rows, rights, strict=True)
    )
    return threads * calls / seconds, sum(wrong) + after


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--algorithm", choices=("dqn", "td3", "sac", "simba", "simba_v2"), default="sac")
    flags.add_argument("--threads", default="1,8", help="numbers of threads, one row for each")
    flags.add_argument("--calls", type=int, default=10_000, help="of each thread")
    flags.add_argument("--interval", type=float, default=sys.getswitchinterval())
    flags.add_argument("--csv", type=Path, help="where rows go; without it they are only printed")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        policy = trained(args.algorithm, folder)
    torch.set_num_threads(1)
    sys.setswitchinterval(args.interval)
    command = shlex.join(["python", "benchmarks/policy_threads.py", *sys.argv[1:]])
    for threads in map(int, args.threads.split(",")):
        rate, wrong = measure(policy, threads, args.calls)
        told = (provenance.commit(), torch.__version__, provenance.device_name("cpu", 1))
        values = (threads, round(rate, 1), wrong, args.algorithm, *told, args.calls, args.interval, command)
        row = dict(zip(COLUMNS, values, strict=True))
        print(", ".join(f"{name} {row[name]}" for name in COLUMNS[:4]), flush=True)
        if args.csv:
            append(args.csv, COLUMNS, row)


if __name__ == "__main__":
    main()
