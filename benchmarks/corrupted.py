"""RIQL against IQL on a dataset corrupted in eight ways: the paper's comparison, two populations.

    python benchmarks/corrupted.py --dataset runs/data/hopper-medium-replay.hdf5 --kind hopper --steps 50_000

1. Corrupts the dataset by each attack (random, adversarial) and element (observation, action, reward, dynamics), once
   for each seed, at the paper's rate 0.3 and scale 1. The adversary is an EDAC agent trained on the clean data for
   `--adversary-steps` (the paper's: 3 million).
2. Trains RIQL on all of them and on the clean set, as one population: dataset, quantile and Huber threshold are
   settings of each agent; K = 5 critics for all (the paper has 3 in some cells). `--kind` says whose settings.
3. Trains IQL in the same way, as the paper ran it: deterministic policy, observations as they are. Unlike theirs, which
   is CORL's, it has its own authors' order (targets and policy see the new V) and orthogonal critics.
4. Writes the rows of the final policies to `benchmarks/results/corrupted.csv` and prints the table of what is in there
   after `--steps`; with an empty `--algorithms`, only that.

What exists is not made again: a second call goes on where the first was stopped. Two processes of one thread each
(OMP_NUM_THREADS=1) are faster than one of two: split the `--cases`, each part with an `--out` of its own. Making
the adversarial data is slow too: 100 gradient steps of ten critics for each attacked row, 9 minutes of a core with
AVX-512 for each of nine files of 200k rows, 17 without.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from offline_table import Scores, cell, final_scores

import deeprl
from deeprl.data.datasets import load_dataset
from deeprl.make_data.adversary import needs_adversary
from deeprl.make_data.corruption import ATTACKS, ELEMENTS, corrupt, write_hdf5
from deeprl.offline import riql
from deeprl.recipes import RECIPES
from deeprl.reporting.table import results, write_rows

CASES = ("clean", *(f"{attack}-{element}" for attack in ATTACKS for element in ELEMENTS))
CLEAN = {key: getattr(riql.Config, key) for key in ("quantile", "huber_threshold")}  # where no attack is named
# Scores of IQL and RIQL on D4RL's medium-replay sets after 3 million steps, for each element in order, as "Uncertainty-
# based Offline Variational Bayesian Reinforcement Learning" (TRACER) reprints them.
PAPER = {
    "halfcheetah": {
        "random": ((21.4, 27.3), (42.2, 42.9), (42.3, 43.6), (36.7, 43.1)),
        "adversarial": ((32.6, 35.7), (27.5, 31.7), (42.6, 44.1), (26.7, 35.8)),
    },
    "walker2d": {
        "random": ((27.2, 28.4), (71.3, 84.6), (65.3, 83.2), (17.7, 78.2)),
        "adversarial": ((37.7, 70.0), (27.5, 66.1), (73.5, 85.0), (-0.1, 60.6)),
    },
    "hopper": {
        "random": ((52.0, 62.4), (76.3, 90.6), (69.7, 84.8), (1.3, 51.5)),
        "adversarial": ((32.8, 50.8), (37.9, 63.6), (57.3, 65.8), (1.3, 65.7)),
    },
}


@dataclass
class Options:
    dataset: str
    kind: str = "hopper"
    """halfcheetah, walker2d or hopper: whose settings of RIQL."""
    out: str = "runs/corrupted"
    seeds: int = 3
    steps: int = 50_000
    adversary_steps: int = 20_000
    eval_episodes: int = 20
    precision: str = "fast"
    cases: tuple[str, ...] = CASES
    algorithms: tuple[Literal["riql", "iql"], ...] = ("riql", "iql")
    csv: str = "benchmarks/results/corrupted.csv"


def dataset_name(options: Options, case: str, seed: int) -> str:
    name = Path(options.dataset).stem
    return name if case == "clean" else f"{name}-{case}-{seed}"


def dataset_files(options: Options) -> dict[tuple[str, int], str]:
    """A file for each case and seed; those of the corrupted are made here."""
    files, dataset, adversary = {}, None, ""
    for case, seed in itertools.product(options.cases, range(options.seeds)):
        if case == "clean":
            files[case, seed] = options.dataset
            continue
        path = Path(options.out) / "data" / f"{dataset_name(options, case, seed)}.hdf5"
        files[case, seed] = str(path)
        if path.exists():
            continue
        attack, _, element = case.partition("-")
        dataset = dataset or load_dataset(options.dataset)
        needed = needs_adversary(attack, (element,))
        if needed:
            adversary = adversary or trained_adversary(options)
        made = corrupt(dataset, attack, (element,), seed=seed, adversary=adversary if needed else None)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hdf5(made, path)
    return files


def trained_adversary(options: Options) -> str:
    """The run directory of an EDAC agent of the clean dataset."""
    out, steps = str(Path(options.out) / "edac"), options.adversary_steps
    deeprl.train("edac", dataset=options.dataset, steps=steps, out=out, eval_every=0, precision=options.precision)
    return out


def population(options: Options, files: dict[tuple[str, int], str], algorithm: str) -> dict[str, Any]:
    """Settings of one agent for each file."""
    common: dict[str, Any] = {"steps": options.steps, "eval_every": 0, "eval_episodes": options.eval_episodes}
    common |= {"dataset": list(files.values()), "seeds": [seed for _, seed in files], "precision": options.precision}
    common |= {"out": str(Path(options.out) / algorithm)}
    if algorithm == "iql":
        return common | {"actor": "deterministic"}
    recipes = [CLEAN if case == "clean" else RECIPES["riql"][f"{options.kind}-{case}"].settings for case, _ in files]
    varied = {key: [recipe[key] for recipe in recipes] for key in ("quantile", "huber_threshold")}
    return common | varied | {"critics": 5}


def table(options: Options, scores: Scores) -> None:
    """Markdown. Of each case whose seeds are all there, and of these attacks together: both means, and their difference
    seed by seed with its 95 % interval."""
    paper = {f"{a}-{e}": PAPER[options.kind][a][i] for a in ATTACKS for i, e in enumerate(ELEMENTS)}
    attacked = []
    print("| case | IQL | RIQL | difference | published: IQL, RIQL, difference |\n|---|---|---|---|---|")
    for case in CASES:
        names = [dataset_name(options, case, seed) for seed in range(options.seeds)]
        found = [[scores.get((which, name), {}).get(i) for i, name in enumerate(names)] for which in ("iql", "riql")]
        if any(score is None for seeds in found for score in seeds):
            continue
        print(line(case, np.array(found), paper.get(case)))
        attacked += [(np.array(found), paper[case])] if case in paper else []
    if attacked:
        ours, theirs = (np.mean(part, 0) for part in zip(*attacked, strict=True))
        print(line("average of these attacks", ours, theirs))


def line(name: str, scores: np.ndarray, paper: Any) -> str:
    """scores: of IQL and RIQL, [2, seeds]. paper: theirs, if there are any."""
    iql, riql = scores
    theirs = f"{paper[0]:.1f}, {paper[1]:.1f}, {paper[1] - paper[0]:.1f}" if paper is not None else ""
    return f"| {name} | {iql.mean():.1f} | {riql.mean():.1f} | {cell((riql - iql).tolist())} | {theirs} |"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    files = dataset_files(options) if options.algorithms else {}
    for algorithm in options.algorithms:
        run = deeprl.train(algorithm, **population(options, files, algorithm))
        command = shlex.join(["python", "benchmarks/corrupted.py", *sys.argv[1:]])
        write_rows(options.csv, [row | {"command": command} for row in results(run.directory)])
    table(options, final_scores([Path(options.csv)], options.steps))


if __name__ == "__main__":
    main()
