"""Whole-loop speed of a peer library's SAC; runs inside the peer's own environment, without deeprl.

    .peers/sb3/bin/python benchmarks/peers.py sb3 --env HalfCheetah-v5 --seconds 20 --threads 2
    .peers/sbx/bin/python benchmarks/peers.py sbx --env HalfCheetah-v5 --seconds 20 --threads 1 --cores 0 --wait

Peers: `sb3` (stable-baselines3, eager PyTorch), `sbx` (its JAX sibling), and `sb3-medium`: stable-baselines3 after
`torch.set_float32_matmul_precision("medium")`, for a comparison at the precision deeprl offers as a setting.

Prints one JSON line. What its numbers are:
    steps, updates   turns of the training loop in the window: one policy action, one environment step (in the peer's
                     Monitor and DummyVecEnv wrappers), one insert into and one sample from the replay buffer, one SAC
                     update of batch 256 (critics, actor, temperature, targets). The counts must agree, or it fails.
    steps_per_s      steps / seconds; with one agent in one environment this is also agent updates per second.
    cpu_s_per_s      CPU seconds of the whole process per second: shows that the thread limit really held (about 1.0 for
                     one thread), or that somebody else took the core (well below 1.0).
    slowest_step_s   the longest turn; a recompilation inside the window would show here.
Not included: imports, random steps, compilation, the first `--warmup-steps` updates, evaluation, logs, checkpoints.

With `--wait` it prints READY once warm and measures when a line arrives on stdin, so that several processes can measure
during the same window. `Stopwatch` and `limit` are also what deeprl's own worker measures with (speed_worker.py).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

LEARNING_STARTS = 1_000  # small, so that updates start soon; the speed of an update does not depend on it
BATCH = 256
INCLUDES = "whole loop: act, env step, replay, 1 update of batch 256; no evaluation or checkpoints"
PACKAGES = {
    "sb3": ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy"),
    "sbx": ("sbx-rl", "stable-baselines3", "jax", "flax", "torch", "gymnasium", "mujoco", "numpy"),
}


class Stopwatch:
    """Counts the turns of a training loop in a window of `seconds` that opens once the loop is warm."""

    def __init__(
        self, warm_at: int, seconds: float, wait: bool = False, sync: Callable[[], object] = lambda: None
    ) -> None:
        self.warm_at, self.seconds, self.wait = warm_at, seconds, wait
        self.sync = sync  # waits for queued device work, so that both ends of the window are true
        self.slowest = 0.0
        self.opened: tuple[float, float, int, int] | None = None
        self.closed: tuple[float, float, int, int] | None = None

    def tick(self, step: int, updates: int) -> bool:
        """Called once a turn with the steps and updates done so far; True when the window is over."""
        if self.opened is None:
            if step >= self.warm_at:
                self._barrier()
                self.opened = self._read(step, updates)
                self._last = self.opened[0]
            return False
        now = time.monotonic()
        self.slowest, self._last = max(self.slowest, now - self._last), now
        if now - self.opened[0] < self.seconds:
            return False
        self.closed = self._read(step, updates)
        return True

    def result(self) -> dict[str, Any]:
        if self.opened is None or self.closed is None:
            raise SystemExit("training ended before the window did: raise its number of steps")
        seconds, cpu, steps, updates = (b - a for a, b in zip(self.opened, self.closed, strict=True))
        if updates != steps:
            raise SystemExit(f"{steps} environment steps but {updates} updates: not one update per step")
        return {
            "steps": steps,
            "updates": updates,
            "seconds": round(seconds, 4),
            "steps_per_s": round(steps / seconds, 2),
            "cpu_s_per_s": round(cpu / seconds, 3),
            "slowest_step_s": round(self.slowest, 4),
        }

    def _barrier(self) -> None:
        if not self.wait:
            return
        say("READY")
        if not sys.stdin.readline():
            raise SystemExit("stdin closed while waiting for the start")

    def _read(self, step: int, updates: int) -> tuple[float, float, int, int]:
        self.sync()
        return time.monotonic(), time.process_time(), step, updates


def say(line: str) -> None:
    """Writes a protocol line to the real stdout; everything else that prints is sent to stderr."""
    print(line, file=sys.__stdout__, flush=True)


def limit(threads: int, cores: list[int]) -> None:
    """Holds this process to `threads` threads and `cores`; must run before numpy, torch or jax are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    # XLA sizes its pool by the cores it may run on, so affinity is the only limit it cannot pass by
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def build(peer: str, env: str, seed: int, threads: int, device: str) -> Any:
    """SAC with the settings all sides share; whatever is not named is the peer's default, which is the paper's."""
    import gymnasium
    import torch  # also in sbx, whose replay buffer is stable-baselines3's

    torch.set_num_threads(threads)
    if peer == "sb3-medium":
        torch.set_float32_matmul_precision("medium")
    if peer == "sbx":
        from sbx import SAC
    else:
        from stable_baselines3 import SAC
    return SAC(
        "MlpPolicy",
        gymnasium.make(env),  # given a name, the peer would make it with render_mode="rgb_array"
        learning_rate=3e-4,
        buffer_size=1_000_000,
        learning_starts=LEARNING_STARTS,
        batch_size=BATCH,
        train_freq=1,
        gradient_steps=1,
        ent_coef="auto",
        policy_kwargs={"net_arch": [256, 256]},
        seed=seed,
        device=device,
        verbose=0,
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("JAX_PLATFORMS", args.device)
    model = build(args.peer, args.env, args.seed, args.threads, args.device)
    # Every update of both peers reads its losses back (`.item()`), so no device work is queued when the callback runs.
    watch = Stopwatch(LEARNING_STARTS + args.warmup_steps, args.seconds, args.wait)

    def callback(*_: object) -> bool:
        return not watch.tick(model.num_timesteps, model._n_updates)

    model.learn(1_000_000, callback=callback, log_interval=None)
    return {
        "peer": args.peer,
        **watch.result(),
        "agents": 1,
        "threads": args.threads,
        "device": args.device,
        "precision": "float32, matmul medium" if args.peer == "sb3-medium" else "float32",
        "versions": versions(PACKAGES[args.peer.removesuffix("-medium")]),
        "includes": f"{INCLUDES}, no log",
    }


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags that peers and deeprl's worker share."""
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the window")
    parser.add_argument("--warmup-steps", type=int, default=300, help="steps with updates before the window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="", help="pin to these cores, such as 0,1 (default: no pinning)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--wait", action="store_true", help="print READY when warm, start on a line from stdin")
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("sb3", "sb3-medium", "sbx"))
    args = arguments(parser).parse_args()
    limit(args.threads, [int(core) for core in args.cores.split(",") if core])
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args)
    say(json.dumps(result))


if __name__ == "__main__":
    main()
