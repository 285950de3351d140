"""Our statistics beside rliable's, on a published table of scores.

    python -m venv .peers/rliable && .peers/rliable/bin/pip install rliable "pandas<3"
    python benchmarks/against_rliable.py --rliable .peers/rliable/bin/python --csv benchmarks/results/statistics.csv

The table is `reference/simba_dmc.csv`: SAC and SimBa on ten tasks of the DeepMind Control Suite, ten seeds, returns at
500k steps divided by 1,000. A row for each statistic: point estimate and 95 % interval of both sides, what parts the
point estimates, and what parts the intervals as a share of the width of rliable's: with as many resamples as rliable
takes by default the two differ by noise of resampling alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.reporting.curves import read_published
from deeprl.reporting.pairwise import improvement, improvement_interval
from deeprl.reporting.stats import (
    bootstrap_interval,
    efficiency_curve,
    iqm,
    optimality_gap,
    profile_band,
    task_median,
)
from deeprl.run.provenance import command, commit

TABLE = Path(__file__).parent / "reference" / "simba_dmc.csv"
STEPS = (100_000, 200_000, 300_000, 500_000)
LEVELS = [0.1, 0.3, 0.5, 0.7, 0.9]
COLUMNS = (
    *("statistic", "algorithm", "ours", "theirs", "apart", "ours_low", "ours_high", "theirs_low", "theirs_high"),
    *("intervals_apart", "resamples", "versions", "commit", "command"),
)
THEIRS = """
import json, sys
import numpy as np
from rliable import library, metrics
np.random.seed(0)
scores = {name: np.array(x) for name, x in json.load(sys.stdin).items()}
final = {name: x[..., -1] for name, x in scores.items()}
x, y = final["SimBa"], final["SAC"]
aggregates = lambda s: np.array([metrics.aggregate_iqm(s), metrics.aggregate_median(s), metrics.aggregate_mean(s),
                                 metrics.aggregate_optimality_gap(s)])
levels = np.array(LEVELS)
curve = lambda s: np.array([metrics.aggregate_iqm(s[..., k]) for k in range(s.shape[-1])])
found = {}
for name, (tables, statistic, resamples) in {
    "aggregate": (final, aggregates, 50000), "curve": (scores, curve, 2000),
    "improvement": ({"SimBa": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), 2000),
}.items():
    points, intervals = library.get_interval_estimates(tables, statistic, reps=resamples)
    for key, value in points.items():
        found[name + " " + key] = [value.tolist(), intervals[key].tolist()]
profiles, bands = library.create_performance_profile(final, levels)
for key, value in profiles.items():
    found["profile " + key] = [value.tolist(), bands[key].tolist()]
print(json.dumps(found))
""".replace("LEVELS", repr(LEVELS))


def scores() -> dict[str, np.ndarray]:
    """Of each algorithm [runs, tasks, steps], in order of tasks and seeds."""
    published = read_published(TABLE)
    found = {}
    for name in ("SAC", "SimBa"):
        tasks = [published[env][f"{name}, UTD 2"] for env in sorted(published)]
        runs = [[[task[seed][step] for step in STEPS] for task in tasks] for seed in range(10)]
        found[name] = np.array(runs) / 1000.0
    return found


def ours(tables: dict[str, np.ndarray]) -> dict[str, tuple[Any, Any]]:
    """Points and intervals [2, K], with the keys of `THEIRS`."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, table in tables.items():
        final = table[..., -1]
        statistics = (iqm, task_median, np.mean, optimality_gap)
        bounds = [bootstrap_interval(final, statistic) for statistic in statistics]
        found[f"aggregate {name}"] = [float(s(final)) for s in statistics], np.transpose(bounds)
        points, low, high = efficiency_curve(table)
        found[f"curve {name}"] = points, np.array([low, high])
        points, low, high = profile_band(final, LEVELS)
        found[f"profile {name}"] = points, np.array([low, high])
    x, y = ([*tables[name][..., -1].T] for name in ("SimBa", "SAC"))
    interval = np.array(improvement_interval(x, y, replications=2_000))[:, None]
    found["improvement SimBa"] = [improvement(x, y)], interval
    return found


def rows(python: str) -> list[dict[str, Any]]:
    tables = scores()
    told = json.dumps({name: table.tolist() for name, table in tables.items()})
    theirs = json.loads(_said([python, "-W", "ignore", "-c", THEIRS], told))
    names = {
        "aggregate": ("IQM", "median", "mean", "optimality gap"),
        "curve": tuple(f"IQM at {step:,} steps" for step in STEPS),
        "profile": tuple(f"share above {level}" for level in LEVELS),
        "improvement": ("probability of improvement over SAC",),
    }
    ask = "import importlib.metadata as m; print('rliable', m.version('rliable'), 'numpy', m.version('numpy'))"
    told = f"deeprl numpy {version('numpy')}; {_said([python, '-c', ask]).strip()}"
    found = []
    for key, (points, bounds) in ours(tables).items():
        kind, algorithm = key.split(" ")
        for k, (point, low, high) in enumerate(zip(points, *bounds, strict=True)):
            their, (their_low, their_high) = theirs[key][0][k], (side[k] for side in theirs[key][1])
            parted = max(abs(low - their_low), abs(high - their_high)) / max(their_high - their_low, 1e-12)
            numbers = (point, their, abs(point - their), low, high, their_low, their_high, parted)
            resamples = 50_000 if kind == "aggregate" else 2_000
            last = (resamples, told, commit(), command())
            values = (names[kind][k], algorithm, *(f"{x:.6g}" for x in numbers), *last)
            found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def _said(words: list[str], told: str = "") -> str:
    return subprocess.run(words, input=told, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rliable", required=True, help="the Python of an environment that has rliable")
    flags.add_argument("--csv", required=True, type=Path, help="where to write the rows")
    args = flags.parse_args()
    found = rows(args.rliable)
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    for row in found:
        print(*(row[c] for c in COLUMNS[:10]), sep="  ")


if __name__ == "__main__":
    main()
