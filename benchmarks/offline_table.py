"""Tables of the offline benchmark from its rows: scores on each dataset, their average, and peers beside ours.

    python benchmarks/offline_table.py benchmarks/results/offline.csv benchmarks/results/offline_cql.csv \
        --peer benchmarks/results/offline_peer.csv

Markdown on stdout. D4RL's normalised scores of the final policies; mean over seeds and its 95 % Student t interval. The
average is taken over the datasets seed by seed first. Beside a peer: the difference of the means, two standard errors
of it, and whether ours is no further below than that.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np

from deeprl.data.scores import normalized_score, score_range
from deeprl.reporting.stats import mean_interval

Scores = dict[tuple[str, str], dict[int, float]]  # (algorithm, dataset) -> seed -> score


def final_scores(files: list[Path], step: int | None = None) -> Scores:
    """Of the last step of each agent, or of those that have one numbered `step`."""
    found: dict[tuple[str, str], dict[int, tuple[int, float]]] = {}
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if step is not None and int(row["step"]) != step:
                    continue
                seeds = found.setdefault((row["algorithm"], row["env"]), {})
                score = row.get("score") or normalized_score(
                    float(row["return"]), score_range("", dataset_name=row["env"])
                )
                seeds[int(row["seed"])] = max(seeds.get(int(row["seed"]), (-1, 0.0)), (int(row["step"]), float(score)))
    return {key: {seed: score for seed, (_, score) in seeds.items()} for key, seeds in found.items()}


def cell(values: list[float]) -> str:
    low, high = mean_interval(values)
    return f"{np.mean(values):.1f} ({low:.1f} to {high:.1f})" if len(values) > 1 else f"{values[0]:.1f}"


def averages(scores: Scores, algorithm: str, datasets: list[str]) -> list[float]:
    """The mean over all datasets of each seed that has them all."""
    own = [scores.get((algorithm, name), {}) for name in datasets]
    return [float(np.mean([one[seed] for one in own])) for seed in sorted(set.intersection(*map(set, own)))]


def table(scores: Scores) -> None:
    algorithms, datasets = (list(dict.fromkeys(key[i] for key in scores)) for i in range(2))
    print(f"| dataset | {' | '.join(algorithms)} |\n|---{'|---' * len(algorithms)}|")
    for name in datasets:
        cells = [cell(list(own.values())) if (own := scores.get((a, name))) else "" for a in algorithms]
        print(f"| {name} | {' | '.join(cells)} |")
    means = [cell(mean) if (mean := averages(scores, a, datasets)) else "" for a in algorithms]
    print(f"| average | {' | '.join(means)} |\n")


def beside(ours: Scores, theirs: Scores) -> None:
    header = ("dataset", "algorithm", "deeprl", "peer", "", "difference", "two standard errors", "not below")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for (label, name), their_seeds in theirs.items():
        algorithm, _, peer = label.partition(":")
        if (algorithm, name) not in ours:
            continue
        own, other = (np.array(list(seeds.values())) for seeds in (ours[algorithm, name], their_seeds))
        difference = own.mean() - other.mean()
        error = 2.0 * math.sqrt(sum(x.var(ddof=1) / len(x) for x in (own, other) if len(x) > 1))
        cells = (cell(own.tolist()), peer, cell(other.tolist()), f"{difference:+.1f}", f"{error:.1f}")
        print(f"| {name} | {algorithm} | {' | '.join(cells)} | {'yes' if difference >= -error else 'NO'} |")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("rows", type=Path, nargs="+", help="files of benchmark rows")
    flags.add_argument("--peer", type=Path, help="rows of offline_peer.py")
    args = flags.parse_args()
    ours = final_scores(args.rows)
    table(ours)
    if args.peer:
        beside(ours, final_scores([args.peer]))


if __name__ == "__main__":
    main()
