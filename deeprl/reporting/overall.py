"""Algorithms over all tasks that they have in common: normalised scores [runs, tasks] and their aggregates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deeprl.reporting.stats import Array, bootstrap_interval, iqm, optimality_gap, task_median

BY_REFERENCES = "D4RL's references: a random policy is at 0, an expert at 1"
BY_RANGE = (
    "the least and greatest return of any run compared here, task by task: these scores say nothing outside of this "
    "comparison, and change where it has other runs"
)
AGGREGATES: dict[str, Callable[..., Any]] = {
    "Median": task_median,
    "IQM": iqm,
    "Mean": np.mean,
    "Optimality gap": optimality_gap,
}


class Sample(NamedTuple):
    """The final policy of a seed: its return, and its normalised score (100: expert), NaN where there is none."""

    ret: float
    score: float = math.nan


class Overall(NamedTuple):
    """scores: by algorithm [runs, tasks]. how: what they are normalised by. notes: what was left out, and why.

    spans: the returns that are at 0 and 1 on each task; empty where scores are those of references.
    """

    tasks: list[str]
    scores: dict[str, Array]
    how: str
    notes: list[str]
    spans: dict[str, tuple[float, float]]


class Estimate(NamedTuple):
    """A number with its 95 % interval, whose bounds are NaN where there is none."""

    value: float
    low: float
    high: float


def overall(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> Overall | None:
    """Tables of the tasks that all algorithms have, None where these are fewer than two or there is no normalising.

    samples: by algorithm and task. Scores by published references where all have them; else, of several algorithms,
    returns between the least and greatest one of each task. Tasks with a return that is not finite, or where all are
    equal, are left out. Tables need as many runs on every task: what an algorithm has more of, in the order given, is
    left out on that task.
    """
    common = set.intersection(*(set(own) for own in samples.values())) if samples else set()
    notes = []
    tasks: list[str] = []
    for task in sorted(common):
        returns = [one.ret for own in samples.values() for one in own[task]]
        if not np.isfinite(returns).all():
            notes.append(f"{task} is left out over all tasks: a return is not finite.")
        else:
            tasks.append(task)
    scored = all(math.isfinite(s.score) for own in samples.values() for task in tasks for s in own[task])
    if not scored:
        flat = [t for t in tasks if len({s.ret for own in samples.values() for s in own[t]}) == 1]
        notes += [f"{task} is left out over all tasks: all returns are equal." for task in flat]
        tasks = [task for task in tasks if task not in flat]
    if len(tasks) < 2 or (not scored and len(samples) < 2):
        return None
    spans: dict[str, tuple[float, float]] = {}
    for task in [] if scored else tasks:
        returns = [one.ret for own in samples.values() for one in own[task]]
        spans[task] = min(returns), max(returns)
    tables: dict[str, Array] = {}
    for name, own in samples.items():
        runs = min(len(own[task]) for task in tasks)
        if max(len(own[task]) for task in tasks) > runs:
            notes.append(
                f"{name} has more than {runs} runs on some tasks: over all tasks the first {runs} of each count."
            )
        columns = [[_normalised(one, spans.get(task)) for one in own[task][:runs]] for task in tasks]
        tables[name] = np.array(columns).T
    return Overall(tasks, tables, BY_REFERENCES if scored else BY_RANGE, notes, spans)


def _normalised(sample: Sample, span: tuple[float, float] | None) -> float:
    if span is None:
        return sample.score / 100.0
    return (sample.ret - span[0]) / (span[1] - span[0])


SampleCurve = Mapping[int, Sample]  # by step


def over_steps(
    together: Overall, curves: Mapping[str, Mapping[str, Sequence[SampleCurve]]]
) -> tuple[list[int], dict[str, Array]]:
    """The steps that all runs of a table have in common, and by algorithm the scores [runs, tasks, steps] there.

    curves: of every seed by algorithm and task, in the order of the samples that `together` was made of. Scores that
    are not finite make a step no common one.
    """
    known = {
        name: [curves[name][task][: len(table)] for task in together.tasks] for name, table in together.scores.items()
    }
    seeds = [seed for own in known.values() for task in own for seed in task]
    steps = sorted(set.intersection(*({s for s, one in seed.items() if math.isfinite(one.ret)} for seed in seeds)))
    spans = [together.spans.get(task) for task in together.tasks]
    tables = {}
    for name, own in known.items():
        by_task = [
            [[_normalised(seed[step], span) for step in steps] for seed in task]
            for task, span in zip(own, spans, strict=True)
        ]
        tables[name] = np.array(by_task).swapaxes(0, 1)
    return steps, tables


def aggregates(scores: Mapping[str, Array]) -> dict[str, dict[str, Estimate]]:
    """Every one of `AGGREGATES` by its title and algorithm, of scores [runs, tasks]."""
    return {
        title: {name: estimate(table, statistic) for name, table in scores.items()}
        for title, statistic in AGGREGATES.items()
    }


def estimate(scores: Array, statistic: Callable[..., Any] = iqm) -> Estimate:
    """A statistic of scores [runs, tasks], with its 95 % interval by stratified bootstrap."""
    axes = tuple(range(scores.ndim))
    return Estimate(float(statistic(scores, axis=axes)), *bootstrap_interval(scores, statistic))
