"""What WSRL's paper claims, on one of our datasets: with and without warm-up, with the data kept, RLPD, from scratch.

    python benchmarks/datasets.py --hdf5 runs/data
    python benchmarks/finetune.py --dataset runs/data/halfcheetah-medium-replay.hdf5
    python benchmarks/finetune.py --table benchmarks/results/finetune.csv

Pre-trains CQL with the networks of WSRL (recipe `wsrl-pretrain`, here two layers of 128: ten critics cost ten times as
much as one), then trains each variant from it, one run after another, and appends its evaluations to the CSV file. The
same command goes on where it was stopped. Everything of a dataset lies in RUNS/NAME, whose report has all curves and
the Q-values across the switch (`deeprl report RUNS/NAME`).

The table: return after the first steps online, the deepest mean over seeds within 5,000 steps (the drop), and the final
one, each with a 95 % t interval over seeds.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import deeprl
from deeprl.reporting.stats import mean_interval
from deeprl.reporting.table import results, write_rows

NETS: dict[str, Any] = {"actor_hidden": (128, 128), "critic_hidden": (128, 128)}
EARLY = 5_000  # steps in which the drop is looked for
VARIANTS: dict[str, dict[str, Any]] = {
    "warm-up": {},
    "no warm-up": {"learning_starts": 256},
    "keep data": {"keep_data": 0.5},
    "own loss, keep data": {"loss": "own", "keep_data": 0.5},
    "rlpd": NETS | {"utd": 4.0, "policy_delay": 4, "keep_data": 0.5},
    "scratch": NETS,
}


@dataclass(frozen=True)
class Options:
    dataset: str = ""
    """File of `datasets.py`."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which, in this order."""
    seeds: str = "0-3"
    offline_steps: int = 10_000
    steps: int = 20_000
    """Online steps of each agent."""
    warm_up: int = 3_000
    """Steps of the pre-trained policy before the first update (5,000 of 500,000 in the paper)."""
    precision: str = "bf16"
    runs: Path = Path("runs/finetune")
    csv: Path = Path("benchmarks/results/finetune.csv")
    table: Path | None = None
    """Print the table of this CSV file and do nothing else."""


def train(options: Options) -> None:
    """Pre-training, then the variants; rows after each."""
    place = options.runs / Path(options.dataset).stem
    usual: dict[str, Any] = {"seeds": options.seeds, "precision": options.precision, "compile": "on", "threads": 1}
    usual |= {"log_every": 250}
    before = place / "before"
    offline: dict[str, Any] = {
        "steps": options.offline_steps,
        "eval_every": options.offline_steps // 5,
        "eval_episodes": 10,
    }
    offline |= {"recipe": "wsrl-pretrain", "dataset": options.dataset, "out": str(before)}
    deeprl.train("cql", **(usual | offline | NETS))
    online = {"steps": options.steps, "learning_starts": options.warm_up}
    online |= {"eval_every": 1_000, "eval_episodes": 5, "snapshot_every": 1_000}
    for name in options.variants:
        algorithm = "rlpd" if name == "rlpd" else "wsrl"
        begin = {} if name in ("rlpd", "scratch") else {"init": str(before)}
        data = {"dataset": options.dataset} if "keep_data" in VARIANTS[name] else {}
        place_of = {"out": str(place / name.replace(",", "").replace(" ", "_")), "label": name}
        env_of = {} if begin else {"env": env_name(before)}
        deeprl.train(algorithm, **(usual | online | begin | data | env_of | place_of | VARIANTS[name]))
        write_rows(options.csv, results(place))


def env_name(run_dir: Path) -> str:
    """The environment in which a run was evaluated."""
    from deeprl.run.directory import evaluated_in
    from deeprl.run.records import read_about

    return evaluated_in(read_about(run_dir)).env


def table(path: Path) -> None:
    """Print beginning, drop and end of each variant."""
    curves: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["unit"] != "gradient steps":
                curves[row["env"], row["algorithm"]][int(row["step"])][row["seed"]] = float(row["return"])
    print("| task | variant | seeds | first | deepest within 5,000 steps | last |\n|---|---|---|---|---|---|")
    for (env, name), curve in sorted(curves.items()):
        steps = sorted(curve)
        early = [step for step in steps if step <= EARLY]
        deepest = min(early, key=lambda step: float(np.mean(list(curve[step].values()))))
        cells = [f"{interval(list(curve[s].values()))} at {s:,}" for s in (steps[0], deepest, steps[-1])]
        print(f"| {env} | {name} | {len(curve[steps[-1]])} | {' | '.join(cells)} |")


def interval(values: list[float], digits: int = 0) -> str:
    """The mean of some seeds with its 95 % t interval."""
    return "{:,.{d}f} ({:,.{d}f} to {:,.{d}f})".format(np.mean(values), *mean_interval(np.array(values)), d=digits)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    if chosen.table is not None:
        table(chosen.table)
    elif chosen.dataset:
        train(chosen)
    else:
        raise SystemExit("--dataset or --table")
