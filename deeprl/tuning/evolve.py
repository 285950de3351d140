"""`deeprl tune --method pbt`: population-based training, and a test of the schedule that came of it.

The members of one population, one a tuning seed, go on from each other (`tuning.pbt`); then agents with the test seeds
are trained with the schedule of the best one, and others with the default settings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.config import RunConfig
from deeprl.config.schedules import read_schedule
from deeprl.reporting.page import html_table
from deeprl.reporting.pairwise import Difference, verdict
from deeprl.reporting.wording import interval_text, number_text, with_interval
from deeprl.run.progress import show
from deeprl.run.provenance import provenance_of
from deeprl.run.records import write_json
from deeprl.tuning.pbt import PbtPlan, PbtResult, train_pbt
from deeprl.tuning.report import between, origin_rows, score_row, score_told, tuning_page
from deeprl.tuning.study import StudyStoppedError, require_apart
from deeprl.tuning.trials import Cost, Group, Score, whole_group


class Evolved(NamedTuple):
    """What population-based training has found. test, default: values of the test seeds with the schedule, and without;
    retest: what these cost."""

    plan: PbtPlan
    result: PbtResult
    test_seeds: tuple[int, ...]
    test: Score
    default: Score
    retest: Cost

    @property
    def gain(self) -> Difference:
        """Schedule minus default, on the test seeds."""
        return between(self.test, self.default)

    @property
    def best(self) -> float:
        """The last evaluation of the best member, whose schedule it is: the best of many, and so too good."""
        assert self.result.best is not None
        return self.result.scores[self.result.best]


def evolve(plan: PbtPlan, test_seeds: Sequence[int], out: str | Path, last: int = 3) -> Evolved:
    """Train, test, and write `out/report/`; called again, it goes on where it was.

    plan: its `config.out` is set to `out/population`. last: evaluations whose mean is the value of a test seed. Raises
    DeeprlError as `train_pbt` does and for seeds that are in both, StudyStoppedError after `max_hours` of a run.
    """
    require_apart(plan.config.seeds, test_seeds)
    folder = Path(out)
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, out=str(folder / "population")))
    result = train_pbt(plan)
    if result.schedule is None:
        raise StudyStoppedError(f"{result.directory} was stopped; the same command goes on")
    show(f"schedule of member {result.best}, and default, with {len(test_seeds)} test seeds")
    base = dataclasses.replace(plan.config, seeds=tuple(test_seeds))
    found, cost = {}, Cost()
    for name, own in (("schedule", {"schedule": read_schedule(result.schedule)}), ("default", {})):
        config: RunConfig = dataclasses.replace(base, **own, out=str(folder / "test" / name))  # type: ignore[arg-type]
        group: Group = whole_group(plan.algorithm, config)
        if not group.train(config.steps):
            raise StudyStoppedError(f"{config.out} was stopped; the same command goes on")
        found[name], cost = group.scores(last, config.steps)[0], cost + group.cost()
    evolved = Evolved(plan, result, tuple(test_seeds), found["schedule"], found["default"], cost)
    _write(evolved, folder / "report")
    return evolved


def evolved_told(found: Evolved) -> str:
    """What was found, in a few lines."""
    lines = [f"best member: {found.result.best}, {number_text(found.best)} at the end, the best of {found.plan.size}"]
    lines += [f"test: schedule {score_told(found.test)}, default {score_told(found.default)}"]
    lines += [f"schedule minus default on the test seeds: {with_interval(*found.gain[:3])}"]
    return "\n".join([*lines, f"schedule: {found.result.schedule}"])


# --- the page ---


def _write(found: Evolved, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    about = _result(found)
    write_json(folder / "result.json", about)
    title = escape(f"{found.plan.algorithm}, {found.plan.config.task}")
    said = verdict(found.gain, found.gain.p)
    what = {"better": "better than", "worse": "worse than", "not shown": "not shown to differ from"}[said]
    parts = [
        f"<h1>Population-based training: {title}</h1>",
        f"<p>On {len(found.test_seeds)} test seeds the schedule is {what} the default: {_shown_gain(found)}.</p>",
        f"<h2>Test</h2>\n{html_table(('What', 'Mean', '95 % interval', 'Seeds'), _score_rows(found))}",
        f"<h2>Schedule</h2>\n{html_table(('From step', 'Member', 'Settings'), _lineage_rows(found))}",
        f"<h2>Cost</h2>\n{html_table(('', 'Agent steps', 'Evaluation episodes'), _cost_rows(found))}",
        f"<h2>Checklist</h2>\n{html_table(('What', ''), _checklist(found, about))}",
    ]
    (folder / "index.html").write_text(
        tuning_page(f"{found.plan.algorithm}, {found.plan.config.task}", parts), encoding="utf-8"
    )


def _shown_gain(found: Evolved) -> str:
    return with_interval(*found.gain[:3])


def _result(found: Evolved) -> dict[str, Any]:
    plan, result = found.plan, found.result
    rules = {name: getattr(plan, name) for name in ("interval", "share", "resample", "seed", "explore")}
    return {
        **{"algorithm": plan.algorithm, "method": "pbt", "rules": rules, "space": plan.space.plain()},
        "space_source": plan.space.source,
        "tuning_seeds": plan.config.seeds,
        "test_seeds": found.test_seeds,
        "best": {"member": result.best, "score": found.best},
        "lineage": [ancestor._asdict() for ancestor in result.lineage],
        "test_score": {"schedule": found.test.seeds, "default": found.default.seeds},
        "gain": found.gain._asdict(),
        "cost": {"search": {"steps": result.steps, "episodes": result.episodes}, "test": found.retest._asdict()},
        **provenance_of("cpu" if plan.config.device == "auto" else plan.config.device, plan.config.threads),
    }


def _score_rows(found: Evolved) -> Iterable[Sequence[Any]]:
    yield (
        f"Best member of {found.plan.size}, at the end",
        found.best,
        "",
        found.plan.config.seeds[found.result.best or 0],
    )
    yield score_row("Schedule, test seeds", found.test, found.test_seeds)
    yield score_row("Default, test seeds", found.default, found.test_seeds)
    yield "Schedule minus default", found.gain.value, interval_text(found.gain.low, found.gain.high), ""


def _lineage_rows(found: Evolved) -> Iterable[Sequence[Any]]:
    for ancestor in found.result.lineage:
        yield ancestor.step, ancestor.member, ", ".join(f"{k}={v:.4g}" for k, v in ancestor.settings.items())


def _cost_rows(found: Evolved) -> Iterable[Sequence[Any]]:
    yield "Population", found.result.steps, found.result.episodes
    yield "Test", found.retest.steps, found.retest.episodes


def _checklist(found: Evolved, about: dict[str, Any]) -> Iterable[Sequence[Any]]:
    yield "Searched by", f"population-based training, {json.dumps(about['rules'])}"
    yield "Space", f"{json.dumps(about['space'])}; {about['space_source']}"
    yield "Seeds of the members", ", ".join(map(str, found.plan.config.seeds))
    yield "Test seeds", ", ".join(map(str, found.test_seeds))
    yield from origin_rows(about)
