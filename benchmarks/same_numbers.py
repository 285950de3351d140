"""Whether this checkout computes the same numbers as another one: every algorithm, bit for bit.

    git worktree add ../before COMMIT
    python benchmarks/same_numbers.py ../before

Short runs of all algorithms and of settings that take another path (`RUNS`), two agents each, f32, one after the other
(`loop`), one thread. Compared are all tensors of the trained agents and the returns of their evaluations. Tensors that
one side alone has are named. Exit status 1 where a number differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent
ONLINE: dict[str, Any] = {
    "env": "Pendulum-v1", "steps": 40, "learning_starts": 28, "eval_episodes": 1, "eval_every": 0, "batch_size": 8,
}  # fmt: skip
OFFLINE: dict[str, Any] = {"env": "Pendulum-v1", "steps": 12, "eval_episodes": 1, "eval_every": 0, "batch_size": 8}
CART: dict[str, Any] = ONLINE | {"env": "CartPole-v1"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", ONLINE),
    "sac tanh utd 0.5": ("sac", ONLINE | {"log_std": "tanh", "utd": 0.5, "target_entropy": [-1.0, -0.5]}),
    "td3": ("td3", ONLINE),
    "td3 simba": ("td3", ONLINE | {"body": "simba", "normalize_obs": True}),
    "simba": ("simba", ONLINE),
    "simba ddpg": ("simba", ONLINE | {"policy": "ddpg", "envs_per_agent": 2}),
    "simba_v2": ("simba_v2", ONLINE | {"envs_per_agent": 2}),
    "dqn": ("dqn", CART),
    "dqn extensions": (
        "dqn",
        CART
        | {"prioritized": True, "n_step": 3, "double": True, "dueling": True, "value": "c51", "max_grad_norm": 1.0},
    ),
    "dqn images": ("dqn", CART | {"env": "MinAtar/Breakout-v1", "reward_clip": 1.0}),
    "bc": ("bc", OFFLINE),
    "bc gaussian": ("bc", OFFLINE | {"actor": "gaussian", "best": 0.5, "weight_decay": 0.01}),
    "td3_bc": ("td3_bc", OFFLINE),
    "rebrac": ("rebrac", OFFLINE),
    "cql": ("cql", OFFLINE | {"bc_steps": 4}),
    "cql calibrated": ("cql", OFFLINE | {"bc_steps": 4, "calibrated": True, "lagrange": 0.8, "backup": "min-then-max"}),
    "edac": ("edac", OFFLINE),
    "edac eta 0": ("edac", OFFLINE | {"eta": 0.0}),
    "iql": ("iql", OFFLINE),
    "iql dropout": ("iql", OFFLINE | {"dropout": 0.1, "rewards": "return-range", "normalize_obs": "both"}),
    "iql deterministic": ("iql", OFFLINE | {"actor": "deterministic", "actor_lr_decay": False}),
    "riql": ("riql", OFFLINE),
}


def dataset(path: Path) -> None:
    """Four episodes of random numbers."""
    draw, rows = np.random.default_rng(0), 200
    steps = np.arange(rows)
    np.savez(
        path,
        observations=draw.normal(size=(rows, 3)).astype("f4"),
        next_observations=draw.normal(size=(rows, 3)).astype("f4"),
        actions=draw.uniform(-1, 1, (rows, 1)).astype("f4"),
        rewards=draw.normal(size=rows).astype("f4"),
        terminals=steps % 50 == 49,
        timeouts=np.zeros(rows, bool),
    )


def leaves(tree: Any, name: str = "") -> dict[str, str]:
    """A digest of each tensor of a state, by its name."""
    if hasattr(tree, "_asdict") or isinstance(tree, dict):
        items = tree if isinstance(tree, dict) else tree._asdict()
        return {k: v for key, value in items.items() for k, v in leaves(value, f"{name}.{key}").items()}
    if isinstance(tree, tuple):
        return {k: v for i, value in enumerate(tree) for k, v in leaves(value, f"{name}.{i}").items()}
    return {name: hashlib.sha256(tree.contiguous().numpy().tobytes()).hexdigest()[:16]}


def train(only: str) -> None:
    """Train with the deeprl that PYTHONPATH names; prints a JSON object for each run."""
    import deeprl
    from deeprl.api import load_population

    warnings.simplefilter("ignore")
    plain: dict[str, Any] = {
        "backend": "loop",
        "compile": "off",
        "threads": 1,
        "precision": "strict",
        "tensorboard": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        dataset(Path(folder) / "rows.npz")
        for name, (algorithm, settings) in RUNS.items():
            if not name.startswith(only) or algorithm not in deeprl.ALGORITHMS:  # one that came later
                continue
            own: dict[str, Any] = {} if "learning_starts" in settings else {"dataset": f"{folder}/rows.npz"}
            out = f"{folder}/{name.replace(' ', '_')}"
            run = deeprl.train(algorithm, out=out, seeds=[1, 2], **plain, **settings, **own)
            rows = (run.directory / "evaluations.csv").read_text(encoding="utf-8").splitlines()
            at = rows[0].split(",").index("wall_s")
            found = leaves(load_population(run.directory).state)
            found["evaluations"] = repr([[x for i, x in enumerate(row.split(",")) if i != at] for row in rows])
            print(json.dumps({"name": name, "found": found}), file=sys.__stdout__, flush=True)


def of_checkout(checkout: Path, only: str) -> dict[str, dict[str, str]]:
    """What the runs of a checkout came to."""
    env = os.environ | {"PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", "--only", only]
    done = subprocess.run(command, env=env, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    return {line["name"]: line["found"] for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--only", default="", help="runs whose names begin so")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return train(args.only)
    if args.before is None:
        parser.error("name the other checkout")
    before, now = (of_checkout(checkout.resolve(), args.only) for checkout in (args.before, HERE))
    different = 0
    for name in now:
        old, new = before.get(name, {}), now[name]
        differ = sorted(leaf for leaf in old.keys() & new.keys() if old[leaf] != new[leaf])
        alone = sorted(old.keys() ^ new.keys())
        if not old:
            print(f"{name}: not there before")
            continue
        different += bool(differ)
        print(f"{name}: {len(old.keys() & new.keys()) - len(differ)} equal; differ: {differ}; one side alone: {alone}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
