"""How much DQN overestimates, and how much less Double DQN does, where the true value of every state is known.

van Hasselt et al. 2016 (arXiv 1509.06461): the maximum over noisy estimates is too high, and bootstrapping carries the
excess on; choosing the action by one network and valuing it by another takes part of it away: the more, the less the
errors of the two have in common. Here every reward is standard normal noise that no action changes, for `HORIZON`
steps. So Q(s, a) = 0 for every state, action and policy, and all that an agent believes of max_a Q(s, a) is bias. Two
settings: `shared`, where both networks have learned from much the same replay memory, and `apart`, where the target
gets up to a whole memory older.

    python benchmarks/overestimation.py [--out DIR] [--rows FILE.csv]
"""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import tyro

import deeprl
from deeprl.api import load_population
from deeprl.online import dqn
from deeprl.reporting.stats import mean_interval
from deeprl.run.loop import Run
from deeprl.run.records import read_about

HORIZON, ACTIONS = 20, 10
SEEDS = tuple(range(20))
SETTINGS: dict[str, Any] = {
    "steps": 30_000, "learning_starts": 1_000, "batch_size": 64, "lr": 1e-3, "train_every": 2, "utd": 0.5,
    "hidden": (64, 64), "epsilon_steps": 1_000.0, "epsilon_end": 1.0, "eval_episodes": 0, "threads": 1,
    "tensorboard": False,
}  # fmt: skip
GROUPS: dict[str, dict[str, Any]] = {
    "shared": {"buffer_size": 10_000, "target_every": 250},
    "apart": {"buffer_size": 2_000, "target_every": 2_000},
}


class Noise(gym.Env):
    """Observes the number of the step, one-hot; every reward is N(0, 1), whatever the action."""

    observation_space = gym.spaces.Box(0.0, 1.0, (HORIZON,), np.float32)
    action_space = gym.spaces.Discrete(ACTIONS)
    place = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = 0
        return np.eye(HORIZON, dtype=np.float32)[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place += 1
        obs = np.eye(HORIZON, dtype=np.float32)[self.place % HORIZON]
        return obs, float(self.np_random.normal()), self.place == HORIZON, False, {}


def biases(run_dir: Path) -> np.ndarray:
    """max_a Q(s, a), which should be 0, in each state, for each seed [S, HORIZON]."""
    population = load_population(run_dir)

    def believed(state: dqn.State) -> torch.Tensor:
        outputs = dqn.outputs(population.net, state.params, torch.eye(HORIZON))
        return dqn.values(population.config, outputs).amax(-1)

    with torch.no_grad():
        return torch.vmap(believed)(population.state).numpy()


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean, and its 95 % interval (Student's t)."""
    return (float(values.mean()), *mean_interval(values))


def row(group: str, name: str, run: Run, seed: int, bias: np.ndarray) -> dict[str, Any]:
    """A row of the table."""
    about = read_about(run.directory)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {
        "setting": group, "algorithm": name, "env": "Noise-v0", "seed": seed, "step": run.step, "true_value": 0.0,
        "bias_mean": round(float(bias.mean()), 5), "bias_first_state": round(float(bias[0]), 5),
        "commit": about["commit"], "torch": about["versions"]["torch"], "device": about["device"], "command": command,
    }  # fmt: skip


def main(
    out: Annotated[Path, tyro.conf.arg(help="directory of the runs; finished ones are not repeated")] = Path(
        "runs/overestimation"
    ),
    rows: Annotated[Path | None, tyro.conf.arg(help="CSV file for one row per agent")] = None,
) -> None:
    """Train both populations and compare what they believe with the truth."""
    make: Any = Noise
    gym.register("Noise-v0", make)
    table = []
    for group, settings in GROUPS.items():
        means = {}
        for name, double in (("dqn", False), ("double_dqn", True)):
            to = out / group / name
            run = deeprl.train("dqn", env="Noise-v0", seeds=SEEDS, double=double, out=to, **SETTINGS, **settings)
            found = biases(run.directory)
            means[name] = found.mean(1)
            table += [row(group, name, run, seed, own) for seed, own in zip(SEEDS, found, strict=True)]
            print(
                f"{group} {name}: bias {{:.3f}} [{{:.3f}}, {{:.3f}}], {len(SEEDS)} seeds".format(*interval(means[name]))
            )
        # Both have the same seeds, so the same environments and first networks: compared in pairs.
        less, share = means["dqn"] - means["double_dqn"], 1.0 - means["double_dqn"] / means["dqn"]
        print(f"{group}: Double DQN's is smaller by {{:.3f}} [{{:.3f}}, {{:.3f}}]".format(*interval(less)))
        print("that is {:.0%} [{:.0%}, {:.0%}] of DQN's".format(*interval(share)), flush=True)
    if rows is not None:
        with rows.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    tyro.cli(main)
