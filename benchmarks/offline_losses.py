"""Losses of deeprl and of d3rlpy on the same dataset files, one plot: a row for each algorithm and dataset.

    deeprl sweep benchmarks/sweeps/offline.toml
    .peers/d3rlpy/bin/python benchmarks/offline_peer.py iql --dataset runs/data/hopper-medium.hdf5 ...
    python benchmarks/offline_losses.py

Reads `RUNS/ALGORITHM/DATASET/metrics.csv` of the sweep and the files of `--losses`; what only one side has is left out.
Thick: mean over seeds; thin: single seeds. d3rlpy's points are means over 1,000 gradient steps. deeprl's are means over
the rows of metrics.csv in each 1,000 steps, each of them the loss of one batch: with `log_every = 100` ten of them.

Both sides sum the critics' squared errors and average everything else, so that the numbers compare as they are; what
d3rlpy calls `critic_loss` of IQL also holds the value's. IQL's `actor_loss` depends on sigma, which d3rlpy starts at
exp(-1.5).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

Curve = dict[int, float]  # loss by gradient step

# title -> deeprl's column, d3rlpy's column
LOSSES = {
    "iql": {
        "value": ("train/value_loss", "v_loss"),
        "critics": ("train/critic_loss", "q_loss"),
        "policy": ("train/actor_loss", "actor_loss"),
    },
    "td3_bc": {
        "critics": ("train/critic_loss", "critic_loss"),
        "policy": ("train/actor_loss", "actor_loss"),
        "imitation": ("train/imitation_loss", "bc_loss"),
    },
}


def curves(files: list[Path], column: str, every: int) -> list[Curve]:
    """The curve of each seed, means over `every` steps. A file without a column `seed` holds one seed."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                last = -(-int(row["step"]) // every) * every
                found[path.name, row.get("seed", "")][last].append(float(row[column]))
    return [{step: sum(v) / len(v) for step, v in sorted(seed.items())} for seed in found.values()]


def draw(axis: Any, seeds: list[Curve], label: str, colour: str) -> None:
    for seed in seeds:
        axis.plot(list(seed), list(seed.values()), color=colour, linewidth=0.6, alpha=0.4)
    steps = sorted(set.intersection(*map(set, seeds)))
    mean = [sum(seed[step] for seed in seeds) / len(seeds) for step in steps]
    axis.plot(steps, mean, color=colour, linewidth=1.8, label=f"{label} (n = {len(seeds)})")


def plot(runs: Path, losses: Path, png: Path, every: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (algorithm, path.parent.name)
        for algorithm in LOSSES
        for path in sorted(runs.glob(f"{algorithm}/*/metrics.csv"))
        if any(losses.glob(f"{algorithm}_{path.parent.name}_[0-9]*.csv"))
    ]
    if not panels:
        raise SystemExit(
            f"no dataset has both {runs}/ALGORITHM/DATASET/metrics.csv and {losses}/ALGORITHM_DATASET_*.csv"
        )
    figure, axes = pyplot.subplots(
        len(panels), 3, figsize=(13, 2.9 * len(panels)), squeeze=False, sharex=True, layout="constrained"
    )
    for row, (algorithm, dataset) in zip(axes, panels, strict=True):
        theirs = sorted(losses.glob(f"{algorithm}_{dataset}_[0-9]*.csv"))
        for axis, (title, (own, other)) in zip(row, LOSSES[algorithm].items(), strict=True):
            draw(axis, curves([runs / algorithm / dataset / "metrics.csv"], own, every), "deeprl", "#0072B2")
            draw(axis, curves(theirs, other, every), "d3rlpy", "#D55E00")
            axis.set_title(f"{algorithm} {dataset}: {title}", fontsize=9)
            if all(y > 0 for line in axis.lines for y in line.get_ydata()):
                axis.set_yscale("log")
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("gradient steps")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=150)
    pyplot.close(figure)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=Path, default=Path("runs/offline"))
    flags.add_argument("--losses", type=Path, default=Path("runs/offline_peer"))
    flags.add_argument("--png", type=Path, default=Path("docs/offline_losses.png"))
    flags.add_argument("--every", type=int, default=1_000, help="steps of a point")
    args = flags.parse_args()
    plot(args.runs, args.losses, args.png, args.every)


if __name__ == "__main__":
    main()
