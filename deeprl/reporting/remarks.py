"""What a reader must know before he believes the numbers of a report: the notes at its top."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deeprl.reporting.cells import Cell
from deeprl.reporting.read import Pairs, RunRecord, unit_name


def remarks(runs: Sequence[RunRecord], cells: Mapping[Cell, Pairs]) -> list[str]:
    """What a reader must know before he believes the numbers."""
    notes = []
    for run in runs:
        where = f"run {run.name} ({run.info['algorithm']}, {run.task})"
        if not run.finished:
            at, total = (
                run.unit.told(step) for step in (run.status.get("step", 0), run.info["config"].get("steps", 0))
            )
            notes.append(f"Unfinished: {where} is at {at} of {total} (state: {run.status.get('state', 'none')}).")
        elif run.status.get("state") == "diverged":
            notes.append(f"All agents of {where} diverged: it ended after {run.unit.told(run.status['step'])}.")
        for agent in run.agents:
            if not agent.evaluations:
                notes.append(f"No evaluation yet: seed {agent.seed} of {where}; it is in no statistic.")
            if agent.frozen is not None:
                update, cause = (agent.frozen.get(key, "?") for key in ("update", "cause"))
                who = f"seed {agent.seed} (member {agent.member}) of {where}"
                at = f"{agent.frozen['step']:,} {run.unit.name}"
                notes.append(f"Diverged: {who} was frozen after {at}, update {update}: {cause} was not finite.")
    for cell, pairs in cells.items():
        notes += [f"{cell.env}, {cell.name}: {text}." for text in _cell_notes(pairs)]
    return notes


def _cell_notes(pairs: Pairs) -> Iterable[str]:
    steps = {agent.final.step for _, agent in pairs}
    if len(steps) > 1:
        yield f"seeds differ in their last step ({min(steps):,} to {max(steps):,} {unit_name(pairs)})"
    if len(pairs) == 1:
        yield "one seed, so no interval"
    if bad := [str(agent.seed) for _, agent in pairs if not math.isfinite(agent.final.mean)]:
        yield f"the final return of seed {', '.join(bad)} is not finite, so there are no statistics"
    counts = Counter(agent.seed for _, agent in pairs)
    if twice := [str(seed) for seed, count in counts.items() if count > 1]:
        yield f"seed {', '.join(twice)} occurs more than once, and equal seeds are not independent samples"
    for name in ("deeprl", "torch", "gymnasium", "mujoco"):
        found = sorted({str(run.info.get("versions", {}).get(name, "unknown")) for run, _ in pairs})
        if len(found) > 1:
            yield f"its runs are of several versions of {name} ({', '.join(found)})"
    if len({run.references for run, _ in pairs}) > 1:
        yield "its runs are scored by other reference returns, so there is no score"
