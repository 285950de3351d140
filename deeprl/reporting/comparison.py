"""Algorithms compared, task by task and over all tasks, with verdicts that hold together.

The first one is the reference; each other one is compared with it. The value of a seed is the mean return of its final
policy, or of the one at a given step: one look, the same for all, never the best of many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from deeprl.errors import DeeprlError
from deeprl.reporting.entrants import Entrant, Entry, described
from deeprl.reporting.overall import Estimate, Overall, Sample, estimate, overall
from deeprl.reporting.pairwise import Difference, holm, improvement, improvement_interval, verdict, welch
from deeprl.reporting.stats import mean_interval

ROW_COLUMNS = (
    *("env", "unit", "reference", "algorithm", "seeds_reference", "seeds", "step_reference", "step"),
    *("mean_reference", "mean_reference_lo", "mean_reference_hi", "mean", "mean_lo", "mean_hi"),
    *("difference", "difference_lo", "difference_hi", "p", "p_holm"),
    *("improvement", "improvement_lo", "improvement_hi", "verdict"),
)


class TaskStanding(NamedTuple):
    """An algorithm on one task: the value of each seed, the steps that they are of, their mean with its t interval."""

    samples: list[Sample]
    steps: tuple[int, int]  # the least and the greatest
    mean: Estimate

    @property
    def returns(self) -> list[float]:
        """One for each seed."""
        return [sample.ret for sample in self.samples]


class Duel(NamedTuple):
    """An algorithm against the reference on one task; chance: that a run of it is above one of the reference."""

    env: str
    name: str
    difference: Difference
    chance: Estimate
    adjusted_p: float
    verdict: str


@dataclass
class Comparison:
    """standings by environment and algorithm; the first of `names` is the reference. chances: over all tasks."""

    names: list[str]
    units: dict[str, str]
    standings: dict[str, dict[str, TaskStanding]]
    duels: list[Duel]
    notes: list[str] = field(default_factory=list)
    together: Overall | None = None
    iqms: dict[str, Estimate] = field(default_factory=dict)
    chances: dict[str, Estimate] = field(default_factory=dict)


def compare(entrants: Sequence[Entrant], at: int | None = None) -> Comparison:
    """Compare each algorithm with the first one. at: the step whose policies count; None: the last one of each seed.

    Raises DeeprlError for fewer than two algorithms, where nothing can be compared, and for a seed that nobody has
    looked at by `at`.
    """
    if len(entrants) < 2:
        raise DeeprlError(f"one algorithm, {entrants[0].name}: nothing to compare it with")
    notes = [note for entrant in entrants for note in entrant.notes]
    standings: dict[str, dict[str, TaskStanding]] = {}
    units: dict[str, str] = {}
    for env in dict.fromkeys(env for entrant in entrants for env in entrant.entries):
        if own := _comparable(env, entrants, notes):
            standings[env] = {name: _standing(env, name, entry, at) for name, entry in own.items()}
            units[env] = next((entry.unit for entry in own.values() if entry.unit), "steps")
            notes += _remarks(env, own, standings[env], units[env], at)
    if not standings:
        raise DeeprlError("nothing to compare: " + (" ".join(notes) or "no task in common"))
    names = [e.name for e in entrants if any(e.name in own for own in standings.values())]
    found = Comparison(names, units, standings, _duels(names, standings), notes)
    _over_all_tasks(found)
    return found


def _comparable(env: str, entrants: Sequence[Entrant], notes: list[str]) -> dict[str, Entry]:
    """Entries of one environment that can stand beside the reference's; empty where there are none."""
    first = entrants[0]
    reference = first.entries.get(env)
    others = [entrant for entrant in entrants[1:] if env in entrant.entries]
    if reference is None or not others:
        where = " and ".join(e.name for e in entrants if env in e.entries)
        notes.append(f"{env} is not compared: it is in {where} only.")
        return {}
    own = {first.name: reference}
    for other in others:
        entry = other.entries[env]
        if entry.unit and reference.unit and entry.unit != reference.unit:
            notes.append(f"{env}: {other.name} counts {entry.unit}, {first.name} {reference.unit}: not compared.")
        elif entry.place and reference.place and entry.place != reference.place:
            told = f"{other.name} has {described(entry.place)}, {first.name} {described(reference.place)}"
            notes.append(f"{env} is not the same task: {told}: not compared.")
        else:
            own[other.name] = entry
    return own if len(own) > 1 else {}


def _standing(env: str, name: str, entry: Entry, at: int | None) -> TaskStanding:
    samples, steps = [], []
    for seed in entry.seeds:
        upto = [step for step in seed.returns if at is None or step <= at]
        if not upto:
            raise DeeprlError(f"--at {at}: seed {seed.seed} of {name} on {env} begins at {min(seed.returns):,}")
        steps.append(max(upto))
        samples.append(Sample(seed.returns[steps[-1]], seed.scores.get(steps[-1], math.nan)))
    returns = [sample.ret for sample in samples]
    finite = np.isfinite(returns).all()
    mean = Estimate(float(np.mean(returns)), *mean_interval(returns)) if finite else Estimate(*[math.nan] * 3)
    return TaskStanding(samples, (min(steps), max(steps)), mean)


def _remarks(
    env: str, own: dict[str, Entry], standings: dict[str, TaskStanding], unit: str, at: int | None
) -> list[str]:
    """What a reader must know of one task."""
    found = []
    spans = {name: standing.steps for name, standing in standings.items()}
    if len(set(spans.values())) > 1 or any(low != high for low, high in spans.values()):
        told = ", ".join(f"{name} {steps_text(span)}" for name, span in spans.items())
        common = min(low for low, _ in spans.values())
        remedy = f"; --at {common} compares at one step" if at is None else ""
        found.append(f"{env}: other budgets, in {unit}: {told}{remedy}.")
    elif at is not None and next(iter(spans.values()))[1] != at:
        found.append(f"{env}: nobody looked at {at:,}; the last looks before are at {next(iter(spans.values()))[1]:,}.")
    missing = [name for name, entry in own.items() if not entry.unit]
    found += [f"{name} does not record what its steps count; taken as {unit}." for name in missing if unit != "steps"]
    for name, entry in own.items():
        seeds = [seed.seed for seed in entry.seeds]
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            found.append(f"{env}, {name}: seed {', '.join(twice)} occurs more than once: no independent samples.")
        if len(seeds) == 1:
            found.append(f"{env}, {name}: one seed, so nothing can be shown.")
        if not math.isfinite(standings[name].mean.value):
            found.append(f"{env}, {name}: a return is not finite, so there are no statistics.")
    return found


def steps_text(span: tuple[int, int]) -> str:
    """Steps from the least to the greatest, once where they are the same."""
    return f"{span[0]:,}" if span[0] == span[1] else f"{span[0]:,} to {span[1]:,}"


def _duels(names: Sequence[str], standings: dict[str, dict[str, TaskStanding]]) -> list[Duel]:
    """All of them; their verdicts are corrected for how many there are."""
    met = [(env, name) for env, own in standings.items() for name in names[1:] if name in own]
    nothing = Difference(*[math.nan] * 4)
    found = []
    for env, name in met:
        ours, theirs = (standings[env][n] for n in (name, names[0]))
        finite = all(math.isfinite(side.mean.value) for side in (ours, theirs))
        difference = welch(ours.returns, theirs.returns) if finite else nothing
        sides = [ours.returns], [theirs.returns]
        chance = Estimate(improvement(*sides), *improvement_interval(*sides)) if finite else Estimate(*[math.nan] * 3)
        found.append((difference, chance))
    adjusted = holm(difference.p for difference, _ in found)
    return [
        Duel(env, name, difference, chance, p, verdict(difference, p))
        for (env, name), (difference, chance), p in zip(met, found, adjusted, strict=True)
    ]


def _over_all_tasks(found: Comparison) -> None:
    """Fill in what needs several tasks, where there are some that all algorithms have."""
    samples = {
        name: {env: own[name].samples for env, own in found.standings.items() if name in own} for name in found.names
    }
    found.together = overall(samples)
    if found.together is None:
        return
    found.notes += found.together.notes
    found.iqms = {name: estimate(scores) for name, scores in found.together.scores.items()}
    theirs = [found.standings[env][found.names[0]].returns for env in found.together.tasks]
    for name in found.names[1:]:
        ours = [found.standings[env][name].returns for env in found.together.tasks]
        found.chances[name] = Estimate(improvement(ours, theirs), *improvement_interval(ours, theirs))


def comparison_rows(found: Comparison) -> list[dict[str, Any]]:
    """One row for each verdict, with the keys `ROW_COLUMNS`; NaN where something cannot be said."""
    rows = []
    for duel in found.duels:
        own = found.standings[duel.env]
        theirs, ours = own[found.names[0]], own[duel.name]
        values = (
            *(duel.env, found.units[duel.env], found.names[0], duel.name, len(theirs.samples), len(ours.samples)),
            *(theirs.steps[1], ours.steps[1], *theirs.mean, *ours.mean, *duel.difference, duel.adjusted_p),
            *(*duel.chance, duel.verdict),
        )
        rows.append(dict(zip(ROW_COLUMNS, values, strict=True)))
    return rows
