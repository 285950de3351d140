"""Whole-loop speed of one deeprl process: the deeprl side of benchmarks/speed.py, one JSON line as peers.py prints it.

    python benchmarks/speed_worker.py --algorithm sac --env HalfCheetah-v5 --agents 8 --seconds 20 --threads 2

What its numbers are (measured by the same stopwatch as the peers, see peers.py):
    steps, updates   turns of the visible loop in the window, times the number of agents: every agent acts, steps its
                     own environment, adds to and samples from its own replay data and is updated once (batch 256).
                     The counts must agree, or it fails. deeprl's own log (every 1,000 steps) and progress bar are on.
    steps_per_s      steps / seconds: agent steps, which are agent updates, per second, summed over the population.
    seconds, cpu_s_per_s, slowest_step_s   as in peers.py.
Not included: imports, random steps, compilation, the first `--warmup-steps` updates, evaluation, checkpoints.

`--set name=value` changes any other field of the algorithm's Config, such as `--set precision=strict`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import sys
import tempfile
from typing import Any

from peers import INCLUDES, LEARNING_STARTS, Stopwatch, arguments, limit, say, versions

from deeprl.api import algorithm_module

PACKAGES = ("deeprl", "torch", "gymnasium", "mujoco", "numpy")


def value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # an ordinary word, such as precision=strict


def measure(
    agents: int,
    env: str,
    seconds: float,
    threads: int,
    *,
    algorithm: str = "sac",
    first_seed: int = 0,
    warmup_steps: int = 300,
    wait: bool = False,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a population until its window has closed. `settings` are further fields of the algorithm's Config."""
    import torch  # here and not above: `limit` must run before it is imported

    module = algorithm_module(algorithm)
    on_card = str((settings or {}).get("device", "cpu")).startswith("cuda")
    watch = Stopwatch(
        LEARNING_STARTS + warmup_steps, seconds, wait, torch.cuda.synchronize if on_card else lambda: None
    )
    with tempfile.TemporaryDirectory() as out:
        fields = {"learning_starts": LEARNING_STARTS, "eval_every": 0, "checkpoint_minutes": 0, "threads": threads}
        seeds = tuple(range(first_seed, first_seed + agents))
        config = module.Config(env=env, seeds=seeds, steps=1_000_000, out=out, **(fields | (settings or {})))
        module.train(config, callback=lambda run: watch.tick(run.step, run.updates))
    counts = watch.result()
    for name in ("steps", "updates", "steps_per_s"):
        counts[name] = round(counts[name] * agents, 2)
    return {
        "peer": "deeprl",
        **counts,
        "agents": agents,
        "threads": threads,
        "device": torch.cuda.get_device_name() if on_card else "cpu",
        "precision": f"float32, {config.precision}" if config.precision != "bf16" else "bf16",
        "versions": versions(PACKAGES),
        "includes": f"{INCLUDES}, own log on",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="sac")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of Config")
    args = arguments(parser).parse_args()
    limit(args.threads, [int(core) for core in args.cores.split(",") if core])
    settings = {name: value(text) for name, _, text in (pair.partition("=") for pair in args.set)}
    settings.setdefault("device", args.device)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(
            args.agents,
            args.env,
            args.seconds,
            args.threads,
            algorithm=args.algorithm,
            first_seed=args.seed,
            warmup_steps=args.warmup_steps,
            wait=args.wait,
            settings=settings,
        )
    say(json.dumps(result))


if __name__ == "__main__":
    main()
