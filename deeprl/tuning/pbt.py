"""Population-based training: the members of ONE run go on from each other, with settings that change on the way.

Jaderberg et al. 2017, "Population Based Training of Neural Networks", arXiv 1711.09846. Every `interval` steps, after
the evaluation of that step:

    rank      members by the mean return of its episodes; those that diverged, or whose mean is NaN, are last
    exploit   the worst `share` of them, and all that diverged, go on from one of the best `share`, drawn uniformly
    explore   of those each parameter of the space is drawn anew with probability `resample`, else moved, within its
              bounds: inner number x 0.8 or x 1.2 on scales of logarithms, a tenth of the range up or down on a linear
              one, one place up or down among choices

A member that goes on from another gets its networks, targets, optimizer moments and running statistics, and neither its
random streams, environments nor replay (`run.selection.apply_succession`). One that diverged is well again then, unless
numbers in its replay are not finite: until these are overwritten it stays frozen, and is in no ranking.

Every draw is a pure function of (seed, round, member), so that a run that was killed goes on as if it had not been.

Differences from the paper: members are ranked as a whole, not compared in pairs, at the same steps for all; settings
keep to the bounds of their space; members that are in the middle of an episode go on with it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deeprl.config import RunConfig, per_agent_fields
from deeprl.config.schedules import schedule_text
from deeprl.core import rng
from deeprl.errors import DeeprlError
from deeprl.run.logger import read_column
from deeprl.run.loop import Callback, Run
from deeprl.run.selection import Selection, Standing, Succession
from deeprl.run.trained import OwnNet, algorithm_module
from deeprl.tuning.spaces import Parameter, Point, Range, Space, require_inside

_FACTORS = 0.8, 1.2  # on scales of logarithms
_PART = 0.1  # of the range, on linear ones


@dataclass(frozen=True)
class PbtPlan:
    """What population-based training is to do.

    config: of the population: `seeds` has one for each member, `out` is where its run is; its per-agent settings have
    one value each. space: the settings that change; member 0 begins with those of `config` where they lie inside, all
    others are drawn. interval: steps between rounds, a multiple of `eval_every`. seed: of all draws. explore=False: all
    members keep the settings of `config`, and only go on from each other: what this gains is luck with seeds.
    """

    algorithm: str
    config: RunConfig
    space: Space
    interval: int
    share: float = 0.25
    resample: float = 0.25
    seed: int = 0
    explore: bool = True

    @property
    def size(self) -> int:
        """Members of the population."""
        return len(self.config.seeds)

    def require(self) -> None:
        """Raise DeeprlError for what cannot be done."""
        config, kind = self.config, type(self.config)
        several = [n for n in per_agent_fields(kind) if isinstance(getattr(config, n), tuple)]
        _require(
            not several, f"{''.join(several[:1])}: one value is needed; population-based training gives the others"
        )
        _require(not config.schedule, "schedule: population-based training makes one, and follows none")
        _require(self.size >= 2, "seeds: population-based training needs two members or more, each with its seed")
        _require(len(set(config.seeds)) == self.size, "seeds: each member needs a seed of its own")
        _require(config.eval_every > 0 < config.eval_episodes, "eval_every, eval_episodes: members are ranked by these")
        fits = 0 < self.interval < config.steps and self.interval % config.eval_every == 0
        where = f"of eval_every ({config.eval_every}) below steps ({config.steps})"
        _require(fits, f"interval: must be a multiple {where}, not {self.interval}")
        _require(0.0 < self.share <= 0.5, f"share: must be above 0, and at most 0.5, not {self.share:g}")
        _require(0.0 <= self.resample <= 1.0, f"resample: must be in 0 .. 1, not {self.resample:g}")
        _require(0 <= self.seed < 2**32, f"seed: must be in 0 .. 2^32 - 1, not {self.seed}")
        for key, parameter in self.space.parameters.items():
            for name in parameter.settings:
                config.require_free(name, key)
            values = [] if isinstance(parameter, Range) else parameter.choices
            texts = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
            _require(not texts, f"{key}: population-based training needs numbers to choose from, not {texts[:1]}")
        require_inside(self.space, config)

    def first_points(self) -> list[Point]:
        """Where the members begin."""
        found = [_drawn(self.space, _numbers(self, 0, member)) for member in range(self.size)]
        return [self.space.point(self.config) or found[0], *found[1:]]

    def settings(self, point: Point) -> dict[str, float]:
        """The settings of a member."""
        return {name: float(value) for name, value in self.space.settings(point, self.config.steps).items()}

    def population(self) -> RunConfig:
        """The settings of the run as it begins."""
        if not self.explore:
            return self.config
        members = [self.settings(point) for point in self.first_points()]
        values: dict[str, Any] = {name: tuple(m[name] for m in members) for name in members[0]}
        return dataclasses.replace(self.config, **values)


class PbtResult(NamedTuple):
    """What population-based training has come to.

    best: the member with the best last evaluation. scores: mean return of that, by member (of those that are well).
    lineage: from which step on the best member's networks were those of which member, with which settings, the first
    step first. schedule: the file of these settings, for `--schedule`. steps, episodes: of all members together, in
    training and in evaluations. Of a run that is not finished lineage and scores are empty, best and schedule None.
    """

    directory: Path
    finished: bool
    best: int | None
    scores: dict[int, float]
    lineage: list[Ancestor]
    schedule: Path | None
    steps: int
    episodes: int


class Ancestor(NamedTuple):
    """The member that the best one descends from, from a step on, and its settings."""

    step: int
    member: int
    settings: dict[str, float]


def train_pbt(plan: PbtPlan, net: OwnNet = None, callback: Callback | None = None) -> PbtResult:
    """Train the population of a plan; called again, it goes on where it was interrupted, or reads what it has come to.

    Its run directory has beside the usual records `pbt.csv`, with a row for each member and round: step, member, seed,
    parent (its own number where it has gone on from itself), score, cause (of one that had diverged), and its settings
    from then on; and, once it is finished, `schedule.toml`. net, callback: as of `deeprl.train`.

    Raises DeeprlError for a plan that cannot be done, and where all members have diverged.
    """
    plan.require()
    run: Run = algorithm_module(plan.algorithm).train(plan.population(), net=net, callback=Breeding(plan, callback))
    if run.diverged:
        raise DeeprlError(f"{run.directory}: all members have diverged; narrow the space (see pbt.csv)")
    returns, rows = run.directory / "evaluations.csv", read_rounds(run.directory / "pbt.csv")
    steps, episodes = run.step * plan.size, len(_csv_rows(returns))
    if not run.finished:
        return PbtResult(run.directory, False, None, {}, [], None, steps, episodes)
    scores = final_scores(returns, [f["member"] for f in run.frozen])
    if not scores:
        raise DeeprlError(f"{run.directory}: no member has a last evaluation; narrow the space (see pbt.csv)")
    best = max(scores, key=lambda member: (scores[member], -member))
    lineage = lineage_of(rows, best)
    place = run.directory / "schedule.toml"
    told = f"{plan.algorithm}: settings on the way of member {best} of {plan.size}, mean return {scores[best]:g}"
    place.write_text(schedule_text(schedule_of(lineage), [told]), encoding="utf-8")
    return PbtResult(run.directory, True, best, scores, lineage, place, steps, episodes)


class Breeding(Selection):
    """A plan at work in a run (`run.selection`): who goes on from whom, and where in the space members are."""

    def __init__(self, plan: PbtPlan, callback: Callback | None = None):
        self._plan, self._callback = plan, callback
        self._points: list[Point] = plan.first_points() if plan.explore else [{}] * plan.size

    def __call__(self, run: Run) -> bool | None:
        return self._callback(run) if self._callback else None

    @property
    def rules(self) -> dict[str, Any]:
        """As there: the plan without the settings of the run."""
        plan = self._plan
        numbers = {name: getattr(plan, name) for name in ("interval", "share", "resample", "seed", "explore")}
        return numbers | {"space": plan.space.plain()}

    @property
    def every(self) -> int:
        """As there."""
        return self._plan.interval

    def rows(self) -> list[dict[str, Any]]:
        """As there: each member is its own parent."""
        return [self._row(0, member, member, Standing(math.nan, "", True)) for member in range(self._plan.size)]

    def choose(self, step: int, standings: Sequence[Standing]) -> Succession:
        """As there: exploit, and explore."""
        plan, number = self._plan, step // self._plan.interval
        parents = exploit(plan, number, standings)
        settings: dict[int, dict[str, float]] = {}
        for child, parent in parents.items() if plan.explore else ():
            self._points[child] = perturbed(plan, number, child, self._points[parent])
            settings[child] = plan.settings(self._points[child])
        rows = [self._row(step, member, parents.get(member, member), s) for member, s in enumerate(standings)]
        return Succession(parents, settings, rows)

    def _row(self, step: int, member: int, parent: int, standing: Standing) -> dict[str, Any]:
        config = self._plan.config
        named = {"step": step, "member": member, "seed": config.seeds[member], "parent": parent}
        return named | {"score": standing.score, "cause": standing.cause} | self._settings(member)

    def _settings(self, member: int) -> dict[str, float]:
        if self._plan.explore:
            return self._plan.settings(self._points[member])
        names = [name for parameter in self._plan.space.parameters.values() for name in parameter.settings]
        values = {name: getattr(self._plan.config, name) for name in names}
        return {name: value for name, value in values.items() if value != "auto"}

    def state_dict(self) -> dict[str, Any]:
        """As there: where the members are."""
        return {"points": [dict(point) for point in self._points]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """As there."""
        self._points = [dict(point) for point in saved["points"]]


# --- decisions ---


def exploit(plan: PbtPlan, number: int, standings: Sequence[Standing]) -> dict[int, int]:
    """Parents of the members that go on from another one in round `number`; members with equal scores rank by number.

    Each share is rounded down to whole members, but at least one and at most half of those ranked; members that are not
    clean are not ranked. Nobody is a parent who is not well: with none, nothing happens.
    """
    ranked = [member for member, standing in enumerate(standings) if standing.clean]
    ranked.sort(key=lambda m: (not standings[m].well, -standings[m].score if standings[m].well else 0.0, m))
    count = min(max(1, int(plan.share * len(ranked))), len(ranked) // 2)
    best = [member for member in ranked[:count] if standings[member].well]
    worst = [m for i, m in enumerate(ranked) if i >= len(ranked) - count or not standings[m].well]
    if not best:
        return {}
    return {child: best[int(_numbers(plan, number, child)[0] * len(best))] for child in sorted(worst)}


def perturbed(plan: PbtPlan, number: int, member: int, point: Point) -> Point:
    """Where in the space a member goes on in round `number` whose parent is at `point`."""
    _, *numbers = _numbers(plan, number, member)
    found: dict[str, float | str] = {}
    for (key, parameter), coin, draw in zip(plan.space.parameters.items(), numbers[::2], numbers[1::2], strict=True):
        found[key] = _inner(parameter, draw) if coin < plan.resample else _beside(parameter, point[key], draw >= 0.5)
    return found


def _beside(parameter: Parameter, inner: float | str, up: bool) -> float | str:
    """The inner number, or the choice, of a parameter after a step up or down."""
    if not isinstance(parameter, Range):
        place = parameter.texts.index(str(inner)) + (1 if up else -1)
        return parameter.texts[min(max(place, 0), len(parameter.texts) - 1)]
    low, high = parameter.inner
    if parameter.scale == "linear":
        number = float(inner) + (_PART if up else -_PART) * (high - low)
    else:
        number = float(inner) * _FACTORS[up]
    return min(max(number, low), high)


def _drawn(space: Space, numbers: Sequence[float]) -> Point:
    """A point of the space, uniform on the scale of each parameter."""
    pairs = zip(space.parameters.items(), numbers[2::2], strict=True)
    return {key: _inner(parameter, number) for (key, parameter), number in pairs}


def _inner(parameter: Parameter, number: float) -> float | str:
    """The inner number, or the choice, of a parameter for a number that is uniform in [0, 1)."""
    if not isinstance(parameter, Range):
        return parameter.texts[int(number * len(parameter.texts))]
    low, high = parameter.inner
    found = low + number * (high - low) if parameter.scale == "linear" else low * (high / low) ** number
    return min(max(found, low), high)


def _numbers(plan: PbtPlan, number: int, member: int) -> list[float]:
    """All that a member draws in a round, uniform in [0, 1): one for its parent, two for each parameter."""
    key = rng.fold_in(rng.key(plan.seed, "pbt", number), member)
    drawn: list[float] = rng.uniform(key, (1 + 2 * len(plan.space.parameters),), dtype=torch.float64).tolist()
    return drawn


# --- what came of it ---


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The rows of a `pbt.csv`, with numbers as numbers. Raises DeeprlError for one that cannot be read."""
    whole, text = ("step", "member", "seed", "parent"), ("cause",)
    rows = _csv_rows(path)
    try:
        return [{k: int(v) if k in whole else v if k in text else float(v) for k, v in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise DeeprlError(f"{path}: {error}") from error


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def final_scores(evaluations: Path, frozen: Sequence[int] = ()) -> dict[int, float]:
    """Mean returns of the last evaluation in `evaluations.csv` by member, of those that are finite and not frozen."""
    returns = read_column(evaluations, "return")
    last = max((step for steps in returns.values() for step in steps), default=0)
    found = {member: steps.get(last, math.nan) for member, steps in returns.items() if member not in frozen}
    return {member: score for member, score in sorted(found.items()) if math.isfinite(score)}


def lineage_of(rows: Sequence[Mapping[str, Any]], member: int) -> list[Ancestor]:
    """The way of a member back to the start, by the rows of `pbt.csv`: one `Ancestor` for each round."""
    settled = ("step", "member", "seed", "parent", "score", "cause")
    by_place = {(row["step"], row["member"]): row for row in rows}
    found = []
    for step in sorted({row["step"] for row in rows}, reverse=True):
        row = by_place[step, member]
        found.append(Ancestor(step, member, {name: value for name, value in row.items() if name not in settled}))
        member = row["parent"]
    return found[::-1]


def schedule_of(lineage: Sequence[Ancestor]) -> list[dict[str, Any]]:
    """The entries of a schedule: the settings at the start, and at each step at which they change, all of them."""
    kept = [a for i, a in enumerate(lineage) if a.settings and (i == 0 or a.settings != lineage[i - 1].settings)]
    return [{"step": ancestor.step} | ancestor.settings for ancestor in kept]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DeeprlError(message)
