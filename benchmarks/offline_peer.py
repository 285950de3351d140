"""Peers on the files that deeprl learns from, d3rlpy or IQL's authors' own code: final policies and losses.

    make .peers/d3rlpy/.done
    .peers/d3rlpy/bin/python benchmarks/offline_peer.py iql --dataset runs/data/hopper-medium.hdf5 --env Hopper-v4 \
        --seeds 0 1 2 3 --steps 50_000

    AUTHORS/bin/pip install jax==0.4.25 jaxlib==0.4.25 flax==0.8.4 optax==0.2.2 tensorflow-probability==0.24.0 \
        numpy==1.24.4 scipy==1.11.4 gymnasium mujoco==4.0.0 imageio h5py tqdm       # theirs needs them that old
    AUTHORS/bin/python benchmarks/offline_peer.py iql --repo implicit_q_learning --dataset ... --env ... --seeds ...

d3rlpy's settings are those of its own reproductions, which are those of deeprl's defaults and recipes: IQL with returns
scaled to a range of 1,000 and a cosine decay over all steps, TD3+BC on standardised observations, BC as d3rlpy has it.
What is left of differences: d3rlpy's layers start as torch's, its IQL learns Q and V in one step and starts from a
narrower policy (log sigma of -1.5, which goes through a sigmoid; actions are not clipped to 1 - 1e-5), its TD3+BC moves
the policy on odd updates, its BC leaves observations as they are, and it drops the last row of an episode that was cut.

--repo: a checkout of ikostrikov/implicit_q_learning. Its agent and dataset are used as they are, with the settings of
its `mujoco_config.py`; only the file is read, and the returns are scaled, here. Two names that newer jax and flax have
dropped are given back to it.

Seeds may be shared between two processes once the CSV is there.

`benchmarks/results/offline_peer.csv`: a row for each seed, the final policy's mean return over `--episodes`, columns
as in all benchmark rows. `--losses`: CSV files of the losses, means over 1,000 steps (`offline_losses.py` draws those
of d3rlpy beside ours). A seed that has its row is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from speed_rows import append, device_name

COLUMNS = [
    *("algorithm", "env", "seed", "step", "return", "score", "wall_s", "updates_per_s"),
    *("commit", "config_hash", "torch", "device", "command", "unit"),
]
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
AUTHORS = {"expectile": 0.7, "temperature": 3.0}  # their mujoco_config.py, where it is not their default
EPOCH = 1_000  # steps over which losses are averaged
Policy = Callable[[Any], Any]  # one observation -> its action, without noise
Losses = list[tuple[int, dict[str, float]]]


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


def columns_of(path: str) -> list[Any]:
    """Those of `KEYS` in a file of D4RL's layout."""
    import h5py

    with h5py.File(path) as file:
        return [file[key][()].astype("float32") for key in KEYS]


def train_d3rlpy(args: argparse.Namespace, seed: int) -> tuple[str, Policy, Losses]:
    import d3rlpy
    import torch

    torch.set_num_threads(args.threads)
    d3rlpy.seed(seed)
    trained = learner(args.algorithm, args.steps)
    losses = trained.fit(
        d3rlpy.dataset.MDPDataset(*columns_of(args.dataset)),
        n_steps=args.steps,
        n_steps_per_epoch=EPOCH,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    return f"d3rlpy {version('d3rlpy')}", lambda obs: trained.predict(obs[None])[0], losses


def train_authors(args: argparse.Namespace, seed: int) -> tuple[str, Policy, Losses]:
    """IQL by the code of its authors."""
    import numpy as np

    eigen = f"--xla_cpu_multi_thread_eigen={str(args.threads > 1).lower()}"
    os.environ.setdefault("XLA_FLAGS", f"{eigen} intra_op_parallelism_threads={args.threads}")
    give_back_names(args.repo)
    from dataset_utils import D4RLDataset
    from learner import Learner

    np.random.seed(seed)  # their batches
    data = D4RLDataset(args.dataset)
    episodes = np.split(data.rewards, np.flatnonzero(data.dones_float)[:-1] + 1)
    returns = [rewards.sum() for rewards in episodes]
    data.rewards *= 1000.0 / (max(returns) - min(returns))
    settings = {
        "expectile": 0.7,
        "temperature": 3.0,
        "max_steps": args.steps,
    }  # their mujoco_config.py
    agent = Learner(seed, data.observations[:1], data.actions[:1], **settings)
    names = {"value_loss": "v_loss", "critic_loss": "q_loss", "actor_loss": "actor_loss"}
    losses = []
    for step in range(EPOCH, args.steps + 1, EPOCH):
        seen = [agent.update(data.sample(256)) for _ in range(EPOCH)]
        losses.append((step // EPOCH, {d3: float(np.mean([x[own] for x in seen])) for own, d3 in names.items()}))
    commit = git("-C", str(args.repo), "rev-parse", "--short", "HEAD")
    return f"authors {commit}", lambda obs: agent.sample_actions(obs, temperature=0.0), losses


def give_back_names(repo: Path) -> None:
    """Make their modules importable: with what newer jax and flax have dropped, and our reader in place of d4rl's."""
    import flax
    import gymnasium
    import jax

    jax.tree_multimap = jax.tree_util.tree_map
    flax.config.update("flax_return_frozendict", True)
    stand_in = ModuleType("d4rl")
    stand_in.qlearning_dataset = transitions  # type: ignore[attr-defined]
    sys.modules |= {"gym": gymnasium, "d4rl": stand_in}
    sys.path.insert(0, str(repo))


def transitions(path: str) -> dict[str, Any]:
    """What D4RL's function of this purpose returns for a file: without the last row of episodes that were cut."""
    observations, actions, rewards, terminals, timeouts = columns_of(path)
    kept = timeouts[:-1] == 0.0
    rows = {"observations": observations, "actions": actions, "rewards": rewards, "terminals": terminals}
    return {k: x[:-1][kept] for k, x in rows.items()} | {"next_observations": observations[1:][kept]}


def mean_return(policy: Policy, env_id: str, episodes: int, seed: int) -> float:
    """Over whole episodes."""
    import gymnasium as gym
    import numpy as np

    env, returns = gym.make(env_id), []
    for episode in range(episodes):
        obs, total, over = env.reset(seed=10_000 * (seed + 1) + episode)[0], 0.0, False
        while not over:
            action = np.clip(policy(obs.astype(np.float32)), -1.0, 1.0)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns))


def git(*command: str) -> str:
    return subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout.strip()


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one agent and evaluate it."""
    import gymnasium as gym

    gym.make(args.env).close()  # what is missing is better said before training
    began = time.monotonic()
    peer, policy, losses = (train_authors if args.repo else train_d3rlpy)(args, seed)
    wall, name = time.monotonic() - began, Path(args.dataset).stem
    save_losses(args.losses / f"{args.algorithm}_{'authors_' if args.repo else ''}{name}_{seed}.csv", losses)
    values = (
        *(f"{args.algorithm}:{peer}", name, seed, args.steps),
        *(mean_return(policy, args.env, args.episodes, seed), "", round(wall, 1), round(args.steps / wall, 1)),
        *(git("rev-parse", "--short", "HEAD"), "", "" if args.repo else version("torch")),
        *(f"cpu ({device_name('cpu')}, {args.threads} threads)", f"python {shlex.join(sys.argv)}"),
        "gradient steps",
    )
    return dict(zip(COLUMNS, values, strict=True))


def save_losses(path: Path, losses: Losses) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *losses[0][1]])
        writer.writeheader()
        writer.writerows({"step": EPOCH * epoch, **means} for epoch, means in losses)


def done(path: Path, args: argparse.Namespace) -> set[int]:
    """Seeds that have their row."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    mine = (Path(args.dataset).stem, str(args.steps))
    peer = f"{args.algorithm}:{'authors' if args.repo else 'd3rlpy'}"
    return {int(row["seed"]) for row in rows if row["algorithm"].startswith(peer) and (row["env"], row["step"]) == mine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=("bc", "td3_bc", "iql"))
    parser.add_argument("--repo", type=Path, help="a checkout of implicit_q_learning, in place of d3rlpy")
    parser.add_argument("--dataset", required=True, help="a file .hdf5")
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--losses", type=Path, default=Path("runs/offline_peer"), help="a folder")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/offline_peer.csv"))
    args = parser.parse_args()
    if args.steps < EPOCH or args.steps % EPOCH:
        parser.error(f"--steps: a multiple of {EPOCH:,}, over which losses are averaged")
    if args.repo and args.algorithm != "iql":
        parser.error("--repo: the algorithm is iql")
    if args.repo and not (args.repo / "learner.py").is_file():
        parser.error(f"--repo: {args.repo} has no learner.py")
    for seed in sorted(set(args.seeds) - done(args.csv, args)):
        row = run(args, seed)
        append(args.csv, COLUMNS, row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
