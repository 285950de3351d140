"""Speed of one deeprl process: the deeprl side of benchmarks/speed.py, one JSON line as peers.py prints it.

    python benchmarks/speed_worker.py --algorithm sac --agents 8 --seconds 20 --threads 2
    python benchmarks/speed_worker.py --algorithm td3 --what update --agents 8 --seconds 20 --threads 2

What a turn is (`--what`; measured by the same stopwatch as the peers, see stopwatch.py):
    loop     a turn of the real `train`: every agent acts, steps its own environment, adds to its own replay data and,
             every `--every` steps, samples from it and is updated once. deeprl's own log (every 1,000 steps) and
             progress bar are on. Offline, a turn is one sample of every agent from the dataset and one update.
    update   the compiled function that samples and updates, as `train` calls it, on replay data of random steps or on
             the dataset.
steps, updates and steps_per_s are summed over the agents.

`--set name=value` changes any other field of the algorithm's Config, such as `--set precision=strict`.
"""

from __future__ import annotations

from stopwatch import Stopwatch, parse, say, versions  # first: it reads the clock

import argparse  # isort: skip
import ast
import contextlib
import json
import sys
import tempfile
from typing import Any

import numpy as np
from speed_data import synthetic
from speed_tasks import CLIP, EPSILON, LEARNING_STARTS, OFFLINE, POLICY_DELAY, TARGET_EVERY, Task, includes, task

PACKAGES = ("deeprl", "torch", "gymnasium", "mujoco", "minatar", "numpy")


def value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # an ordinary word, such as precision=strict


def settings(algorithm: str, kind: Task, every: int) -> dict[str, Any]:
    """Fields of the algorithm's Config, those that all sides share."""
    if algorithm in OFFLINE:
        rates = {"actor_lr": kind.lr, "critic_lr": kind.lr, "value_lr": kind.lr}
        return {"batch_size": kind.batch, "hidden": kind.hidden} | rates
    fields = {"env": kind.env, "batch_size": kind.batch, "buffer_size": kind.buffer, "hidden": kind.hidden}
    fields |= {"learning_starts": LEARNING_STARTS, "utd": 1 / every}
    if algorithm == "dqn":
        fields |= {"lr": kind.lr, "train_every": every, "target_every": TARGET_EVERY, "loss": "huber"}
        return fields | {"max_grad_norm": CLIP, "epsilon_end": EPSILON, "epsilon_steps": 1.0}
    return (
        fields
        | {"actor_lr": kind.lr, "critic_lr": kind.lr}
        | ({"policy_delay": POLICY_DELAY} if algorithm == "td3" else {"alpha_lr": kind.lr})
    )


def make_config(args: argparse.Namespace, kind: Task, out: str) -> Any:
    """The run's settings, whatever `--set` says on top."""
    from deeprl.api import algorithm_module
    from deeprl.config import build

    fields = settings(args.algorithm, kind, args.every)
    if args.algorithm in OFFLINE:
        fields["dataset"] = f"{out}/synthetic.npz"
        np.savez(fields["dataset"], **synthetic(kind.buffer, args.seed))
    fields |= {"seeds": list(range(args.seed, args.seed + args.agents)), "steps": 1_000_000, "out": f"{out}/run"}
    fields |= {"eval_every": 0, "checkpoint_minutes": 0, "threads": args.threads, "device": args.device}
    fields |= {name: value(text) for name, _, text in (pair.partition("=") for pair in args.set)}
    return build(algorithm_module(args.algorithm).Config, fields)


def measure(args: argparse.Namespace, kind: Task) -> dict[str, Any]:
    """Trains a population, or updates it, until the window is over."""
    import torch  # here and not above: the threads must be limited before it is imported
    from speed_update import update_until

    from deeprl.api import algorithm_module

    with tempfile.TemporaryDirectory() as out:
        config = make_config(args, kind, out)
        on_card = config.device.startswith("cuda")
        loop = args.what == "loop"
        per_step = getattr(config, "utd", 1.0)  # offline, a step is an update
        warm_at = args.warmup_steps + (getattr(config, "learning_starts", 0) if loop else 0)
        sync = torch.cuda.synchronize if on_card else lambda: None
        watch = Stopwatch(warm_at, args.seconds, args.wait, sync, per_step if loop else 1.0)
        if loop:
            algorithm_module(args.algorithm).train(config, callback=lambda run: watch.tick(run.step, run.updates))
        else:
            update_until(args.algorithm, config, watch)
    counts = watch.result()
    for name in ("steps", "updates", "steps_per_s"):
        counts[name] = round(counts[name] * args.agents, 2)
    return {
        "peer": "deeprl",
        **counts,
        "agents": args.agents,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if on_card else "cpu",
        "precision": f"float32, {config.precision}" if config.precision != "bf16" else "bf16",
        "versions": versions(PACKAGES),
        "includes": includes(args.algorithm, kind, args.what, args.every, "own log on" if loop else ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of Config")
    args = parse(parser)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args, task(args.algorithm, args.env, args.size))
    say(json.dumps(result))


if __name__ == "__main__":
    main()
