"""The checklist of a report: what one must know to believe its numbers, cell by cell, and the evaluation seeds.

After the checklists of Agarwal et al. 2021 (appendix) and Eimer, Lindauer & Raileanu 2023, "Hyperparameters in
Reinforcement Learning and How To Tune Them".
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprl.reporting.cells import Cell
from deeprl.reporting.read import Pairs, RunRecord, unit_name

HEADER = ("Environment", "Cell", "Seeds", "Which", "Steps of each", "Steps of all", "Evaluated every", "Episodes")
SEED_COLUMNS = ("env", "cell", "seed", "step", "episode", "reset_seed")
FACTS = (
    "Policy: the final one of every run, without exploration; never the best of several looks.",
    "Samples: training runs (seeds). Episodes of one run are averaged first.",
    "Evaluation: in environments of its own. Each episode begins from a seed that the agent's seed, the step and the "
    "number of the episode give, in a stream of random numbers of its own (`eval`), which training does not use: "
    "evaluation_seeds.csv lists those of the final policies. Environments on the device draw from that stream itself.",
    "Intervals: 95 %; nothing is corrected for the number of cells in the table of final policies.",
)


def search_fact(runs: Sequence[RunRecord]) -> str:
    """What was searched, as the studies (`study.json` of `deeprl tune`) say in whose directories the runs lie."""
    studies = {
        file for run in runs for folder in run.path.absolute().parents if (file := folder / "study.json").exists()
    }
    if not studies:
        return (
            "Search: none is recorded here. Every run below this directory is in the tables; if settings came from a "
            "search elsewhere, its cost is not counted here."
        )
    told = []
    for file in sorted(studies):
        plan = json.loads(file.read_text(encoding="utf-8"))
        seeds = len(plan.get("tuning_seeds", []))
        told.append(f"{file.parent.name}: {plan.get('algorithm')}, {plan.get('trials')} trials x {seeds} tuning seeds")
    return (
        f"Search: these are runs of a search ({'; '.join(told)}). Its best trial was chosen by the numbers below, on "
        "its tuning seeds: go by the test in report/ of the search."
    )


def checklist_rows(cells: Mapping[Cell, Pairs]) -> Iterable[Sequence[Any]]:
    """One for each cell, with the columns of `HEADER`."""
    for cell, pairs in cells.items():
        unit = unit_name(pairs)
        last = [agent.final.step for _, agent in pairs]
        each = f"{last[0]:,}" if len(set(last)) == 1 else f"{min(last):,} to {max(last):,}"
        every = _several(run.info["config"].get("eval_every") or 0 for run, _ in pairs)
        episodes = _several(len(agent.final.returns) for _, agent in pairs)
        seeds = " ".join(str(agent.seed) for _, agent in pairs)
        looks = "the end" if every == "0" else f"{every} {pairs[0][0].unit.counted}"
        yield cell.env, cell.name, len(pairs), seeds, f"{each} {unit}", f"{sum(last):,}", looks, episodes


def _several(values: Iterable[int]) -> str:
    return " or ".join(f"{value:,}" for value in dict.fromkeys(values))


def write_evaluation_seeds(path: Path, cells: Mapping[Cell, Pairs]) -> None:
    """With what the environments of the final evaluations were reset: a row for each episode, `SEED_COLUMNS`.

    Agents on the device have none.
    """
    from deeprl.envs.vector import env_seeds

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SEED_COLUMNS)
        for cell, pairs in cells.items():
            for run, agent in pairs:
                counter, count = agent.final.step // run.unit.factor, len(agent.final.returns)
                drawn = [] if _on_device(run) else env_seeds(agent.seed, "eval", count, counter)
                for episode, seed in enumerate(drawn):
                    writer.writerow((cell.env, cell.name, agent.seed, agent.final.step, episode, seed))


def _on_device(run: RunRecord) -> bool:
    return run.info["config"].get("env_backend") == "device"
