"""`deeprl evaluate`: many episodes of every trained agent of a run, without exploration."""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np

from deeprl.core.process import torch_defaults
from deeprl.data.scores import normalized_score
from deeprl.errors import DeeprlError
from deeprl.run.directory import evaluated_in, read_about
from deeprl.run.evaluate import Evaluator, greedy_policy
from deeprl.run.progress import Progress, show
from deeprl.run.targets import check_table
from deeprl.run.trained import OwnNet, load_population

_COLUMNS = ("member", "seed", "episode", "return", "length")
_COUNTER = 2**32 - 1  # starts that no evaluation during training has used: those count environment steps


def run(options: argparse.Namespace) -> int:
    """The command."""
    if options.episodes < 1:
        raise DeeprlError(f"--episodes: must be positive, not {options.episodes}")
    assess(options.run_dir, options.episodes, options.csv, options.step)
    return 0


@torch_defaults()
def assess(
    run_dir: str | Path,
    episodes: int,
    table: str | None = None,
    step: int | None = None,
    net: OwnNet = None,
) -> np.ndarray:
    """Print each agent's mean return over new episodes and return them all, [S, episodes].

    table: a CSV file to write every episode to (member, seed, episode, return, length). step: of a snapshot, instead
    of the newest checkpoint. net: the run's own networks, if they have no name.

    Raises DeeprlError where `table` exists with other columns, or belongs to the records of a run.
    """
    if table:
        check_table(table, _COLUMNS)
    population = load_population(run_dir, net, step=step)
    path = Path(table).absolute() if table else None  # an environment may change the working directory
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    seeds = [m["seed"] for m in population.members]
    make = evaluated_in(read_about(Path(run_dir)))
    evaluator = Evaluator(make, seeds, episodes)
    progress = Progress(f"evaluating in {make.env}", episodes * len(seeds))
    policy = greedy_policy(population.act(), population.state, begin=population.begin)
    played = evaluator(policy, _COUNTER, lambda ended, step: progress.update(ended))
    progress.close()
    if evaluator.cut:
        show(evaluator.cut)
    evaluator.close()
    returns = np.array([e.ret for e in played]).reshape(len(seeds), episodes)
    for about, own in zip(population.members, returns, strict=True):
        settings = "".join(f" {k}={v}" for k, v in about["settings"].items())
        error = own.std(ddof=1) / math.sqrt(episodes) if episodes > 1 else math.nan
        found = population.spec.score_range
        score = f", score {normalized_score(own.mean(), found):.1f}" if found else ""
        text = f"{own.mean():,.2f} (standard error {error:,.2f}, {episodes} episodes{score})"
        print(f"seed {about['seed']}{settings}: {text}")
    if path:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows((e.member, seeds[e.member], e.env, e.ret, e.length) for e in played)
    return returns
