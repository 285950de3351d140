"""What happens to the Q-values of the data once agents learn online (the question of WSRL's paper)?

    python benchmarks/finetune.py --dataset runs/data/halfcheetah-medium-replay.hdf5
    python benchmarks/finetune_values.py runs/finetune/halfcheetah-medium-replay --png docs/finetune_halfcheetah.png
    python benchmarks/finetune_values.py

From the snapshots of each run below the directory: Q-values at 4,096 transitions of the dataset, the same ones at each
step, as means over these and the critics. `q`: of the data's actions; `q_policy`: of the policy's mode at the same
observations; `spread`: the deviation over the critics, its mean over the transitions. Step 0 is the end of the
pre-training. Rows go to a CSV file, and into a picture: returns above, `q` below. Without a directory: the table of
that file, at the steps 0, 1,000, a quarter, and the last one.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune import interval
from speed_rows import save, versions_told

from deeprl import nets
from deeprl.core import rng
from deeprl.core.population import member
from deeprl.data.datasets import load_dataset
from deeprl.reporting.curves import Published, picture
from deeprl.reporting.read import RunRecord, read_runs
from deeprl.run import provenance
from deeprl.run.snapshots import snapshot_steps
from deeprl.run.trained import load_population

RESULTS = Path(__file__).parent / "results/finetune_values.csv"
COLUMNS = ("env", "variant", "seed", "step", "q", "q_policy", "spread", "versions", "commit", "command")
VALUES = ("q", "q_policy", "spread")
ROWS = 4_096


def values(run: Path, step: int | None, obs: torch.Tensor, action: torch.Tensor) -> list[dict[str, Any]]:
    """The values of each agent of a run at a step, by name, and its seed."""
    population, found = load_population(run, step=step), []
    act, fresh = population.act(), torch.ones(len(obs), dtype=torch.bool)
    for i, about in enumerate(population.members):
        state = member(population.state, i)
        seen, critic = state.facts.see(obs), nets.bound(population.net, state.fixed).critic
        own, _ = act(state, (), obs, fresh, rng.key(0, "eval"))
        q, q_policy = (nets.functional_call(critic, state.critic, (seen, a)) for a in (action, own))
        numbers = q.mean().item(), q_policy.mean().item(), q.std(0).mean().item()
        found.append({"seed": about["seed"]} | dict(zip(VALUES, numbers, strict=True)))
    return found


@torch.no_grad()
def rows_of(runs: list[RunRecord]) -> Iterable[dict[str, Any]]:
    """The rows of all runs, of which one is the pre-training."""
    (before,) = (run for run in runs if not run.env)
    dataset = load_dataset(before.info["config"]["dataset"])
    chosen = np.random.default_rng(0).choice(len(dataset), ROWS, replace=False)
    data = torch.as_tensor(dataset.data.obs[chosen]), torch.as_tensor(dataset.data.action[chosen])
    about = {
        "versions": versions_told("deeprl", "torch"),
        "commit": provenance.commit(),
        "command": provenance.command(),
    }
    start = values(before.path, None, *data)
    for run in runs:
        if run is before:
            continue
        variant, env = run.info["config"]["label"], run.env
        known = [(0, start)] if run.info["config"].get("source") else []
        for step, agents in known + [(s, values(run.path, s, *data)) for s in snapshot_steps(run.path)]:
            for agent in agents:
                yield {"env": env, "variant": variant, "step": step} | agent | about


def draw(runs: list[RunRecord], rows: Iterable[dict[str, Any]], png: Path) -> None:
    """Returns and values of each variant, mean and 95 % band over seeds."""
    returns: Published = {}
    for run in runs:
        if run.env and all(agent.evaluations for agent in run.agents):
            curves = [{at.step: at.mean for at in agent.evaluations} for agent in run.agents]
            before = [agent.pretraining.returns if agent.pretraining else {} for agent in run.agents]
            first = -max(map(max, curves))
            kept = [{s: v for s, v in b.items() if s >= first} for b in before]
            returns[run.info["config"]["label"]] = [b | c for b, c in zip(kept, curves, strict=True)]
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["variant"]][row["seed"]][int(row["step"])] = float(row["q"])
    q = {name: list(seeds.values()) for name, seeds in found.items() if name in returns}
    (env,) = {run.env for run in runs if run.env}
    drawn, _ = picture(env, returns, list(returns), {}, "simulator steps", q, "Q-value of the data")
    png.write_bytes(drawn)


def table(rows: Iterable[dict[str, Any]]) -> None:
    """Means over seeds with 95 % intervals."""
    found: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["env"], row["variant"]][int(row["step"])].append(row)
    print("| task | variant | step | Q of the data | Q of the policy's actions there | spread over critics |")
    print("|---|---|---|---|---|---|")
    for (env, variant), steps in sorted(found.items()):
        last = max(steps)
        for step in dict.fromkeys(s for s in (0, 1_000, last // 4, last) if s in steps):
            cells = [interval([float(row[name]) for row in steps[step]], 1) for name in VALUES]
            print(f"| {env} | {variant} | {step:,} | {' | '.join(cells)} |")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("directory", nargs="?", type=Path, help="of `finetune.py`, with the runs of one dataset")
    flags.add_argument("--csv", type=Path, default=RESULTS)
    flags.add_argument("--png", type=Path)
    args = flags.parse_args()
    if args.directory is None:
        with args.csv.open(newline="", encoding="utf-8") as file:
            table(csv.DictReader(file))
        return
    runs = read_runs(args.directory)
    rows = list(rows_of(runs))
    texts = [{k: f"{v:.6g}" if k in VALUES else str(v) for k, v in row.items()} for row in rows]
    save(args.csv, texts, COLUMNS, COLUMNS[:4])
    table(rows)
    if args.png is not None:
        draw(runs, rows, args.png)


if __name__ == "__main__":
    main()
