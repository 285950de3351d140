"""d3rlpy on the files that deeprl learns from: its final policies and its losses, beside ours.

    make .peers/d3rlpy/.done
    .peers/d3rlpy/bin/python benchmarks/offline_peer.py iql --dataset runs/data/hopper-medium.hdf5 --env Hopper-v4 \
        --seeds 0 1 2 3 --steps 50_000

Settings are those of d3rlpy's own reproductions, which are those of deeprl's defaults and recipes: IQL with returns
scaled to a range of 1,000 and a cosine decay over all steps, TD3+BC on standardised observations, BC as d3rlpy has it.
What is left of differences: d3rlpy's layers start as torch's, its IQL learns Q and V in one step and starts from a
narrower policy (log sigma of -1.5, which goes through a sigmoid; actions are not clipped to 1 - 1e-5), its TD3+BC moves
the policy on odd updates, its BC leaves observations as they are, and it drops the last row of an episode that was cut.
Seeds may be shared between two processes once the CSV is there.

`benchmarks/results/offline_peer.csv`: a row for each seed, the final policy's mean return over `--episodes`, columns
as in all benchmark rows. `--losses`: CSV files of d3rlpy's losses, means over 1,000 steps (`offline_losses.py` draws
them beside ours). A seed that has its row is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

COLUMNS = [
    *("algorithm", "env", "seed", "step", "return", "score", "wall_s", "updates_per_s"),
    *("commit", "config_hash", "torch", "device", "command"),
]
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def learner(algorithm: str, steps: int) -> Any:
    """d3rlpy's algorithm with the settings of its reproductions."""
    from d3rlpy import algos, optimizers, preprocessing

    if algorithm == "bc":
        return algos.BCConfig(learning_rate=3e-4, batch_size=256).create()
    if algorithm == "td3_bc":
        scaler = preprocessing.StandardObservationScaler()
        return algos.TD3PlusBCConfig(alpha=2.5, batch_size=256, observation_scaler=scaler).create()
    decay = optimizers.AdamFactory(lr_scheduler_factory=optimizers.CosineAnnealingLRFactory(T_max=steps))
    config = algos.IQLConfig(
        actor_learning_rate=3e-4,
        critic_learning_rate=3e-4,
        actor_optim_factory=decay,
        batch_size=256,
        weight_temp=3.0,
        max_weight=100.0,
        expectile=0.7,
        reward_scaler=preprocessing.ReturnBasedRewardScaler(multiplier=1000.0),
    )
    return config.create()


def dataset_of(path: str) -> Any:
    """A file of D4RL's layout as d3rlpy holds it."""
    import d3rlpy
    import h5py

    with h5py.File(path) as file:
        columns = [file[key][()].astype("float32") for key in KEYS]
    return d3rlpy.dataset.MDPDataset(*columns)


def mean_return(trained: Any, env_id: str, episodes: int, seed: int) -> float:
    """Of the policy without noise, over whole episodes."""
    import gymnasium as gym
    import numpy as np

    env, returns = gym.make(env_id), []
    for episode in range(episodes):
        obs, total, over = env.reset(seed=10_000 * (seed + 1) + episode)[0], 0.0, False
        while not over:
            action = np.clip(trained.predict(obs[None].astype(np.float32))[0], -1.0, 1.0)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns))


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one agent and evaluate it."""
    import d3rlpy
    import gymnasium as gym
    import torch

    gym.make(args.env).close()  # what is missing is better said before training
    torch.set_num_threads(args.threads)
    d3rlpy.seed(seed)
    trained, began = learner(args.algorithm, args.steps), time.monotonic()
    losses = trained.fit(
        dataset_of(args.dataset),
        n_steps=args.steps,
        n_steps_per_epoch=1_000,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    wall = time.monotonic() - began
    name = Path(args.dataset).stem
    save_losses(args.losses / f"{args.algorithm}_{name}_{seed}.csv", losses)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    values = (
        *(f"{args.algorithm}:d3rlpy {version('d3rlpy')}", name, seed, args.steps),
        *(mean_return(trained, args.env, args.episodes, seed), "", round(wall, 1), round(args.steps / wall, 1)),
        *(commit.stdout.strip(), "", version("torch"), platform.machine(), f"python {shlex.join(sys.argv)}"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def save_losses(path: Path, losses: list[tuple[int, dict[str, float]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *losses[0][1]])
        writer.writeheader()
        writer.writerows({"step": 1_000 * epoch, **means} for epoch, means in losses)


def done(path: Path, args: argparse.Namespace) -> set[int]:
    """Seeds that have their row."""
    if not path.exists():
        return set()
    with path.open() as file:
        rows = list(csv.DictReader(file))
    mine = (Path(args.dataset).stem, str(args.steps))
    return {
        int(row["seed"])
        for row in rows
        if row["algorithm"].startswith(f"{args.algorithm}:d3rlpy") and (row["env"], row["step"]) == mine
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=("bc", "td3_bc", "iql"))
    parser.add_argument("--dataset", required=True, help="a file .hdf5")
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--losses", type=Path, default=Path("runs/offline_peer"), help="a folder")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/offline_peer.csv"))
    args = parser.parse_args()
    if args.steps < 1_000 or args.steps % 1_000:
        parser.error("--steps: a multiple of 1,000, d3rlpy's epoch here")
    for seed in sorted(set(args.seeds) - done(args.csv, args)):
        row = run(args, seed)
        new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
