"""What a study says: a few lines on the screen, `report/index.html`, `trials.csv` and `result.json` beside it.

The fields of `result.json` are those of the checklist of Eimer et al. 2023 ("Hyperparameters in Reinforcement Learning
and How To Tune Them", App. A): seeds of tuning and of test, space, budget, method, cost.
"""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.reporting.curves import as_png, new_page, style_axes
from deeprl.reporting.page import CSS, html_table
from deeprl.reporting.pairwise import Difference, verdict, welch
from deeprl.reporting.stats import mean_interval
from deeprl.reporting.wording import interval_text, number_text, with_interval
from deeprl.run.provenance import provenance_of
from deeprl.run.records import write_json
from deeprl.tuning.study import Plan, Told
from deeprl.tuning.trials import Score
from deeprl.tuning.tune import Tuned

METHOD = (
    "The value of a seed is the mean return over the last evaluations of its agent, of the final policy and those just "
    "before it; that of a trial the mean (or IQM) over the tuning seeds. The winner is the trial of the largest value.",
    "The winner was chosen by the tuning seeds, so that its value on them is too good by as much as it was lucky: the "
    "drop. What it is worth is its mean on the test seeds, which no trial has seen.",
    "Intervals: 95 %, Student's t for means, Welch's t for differences; p is two-sided.",
    "Importance: the share of each parameter in what sets good trials apart (PED-ANOVA, by Optuna), of whole trials.",
    "Steps are those of one agent, times agents. Evaluations are counted apart: an agent that learns from a dataset "
    "meets its environment in these alone.",
)


def study_told(found: Tuned) -> str:
    """What was found, in a few lines."""
    value = found.winner.value or math.nan
    lines = [f"winner: trial {found.winner.number}, {number_text(value)} on the tuning seeds"]
    lines += [f"  {name} = {value}" for name, value in found.winner.settings.items()]
    lines += [f"test: winner {score_told(found.test)}, default {score_told(found.default)}"]
    lines += [f"winner minus default on the test seeds: {_difference(gain(found))}"]
    lines += [f"drop from tuning to test seeds: {_difference(drop(found))}"]
    return "\n".join(lines)


def gain(found: Tuned) -> Difference:
    """Winner minus default, on the test seeds."""
    return between(found.test, found.default)


def drop(found: Tuned) -> Difference:
    """The winner's value on the tuning seeds minus that on the test seeds."""
    return between(Score(found.winner.seeds), found.test)


def write_pages(found: Tuned, plan: Plan) -> Path:
    """Write `report/` of a study, and return the page."""
    folder = found.folder / "report"
    folder.mkdir(exist_ok=True)
    _write_trials(folder / "trials.csv", found.told)
    about = result(found, plan)
    write_json(folder / "result.json", about)
    picture = incumbents(found.told, plan)
    (folder / "incumbent.png").write_bytes(picture)
    page = folder / "index.html"
    page.write_text(_page(found, plan, picture, about), encoding="utf-8")
    return page


def result(found: Tuned, plan: Plan) -> dict[str, Any]:
    """All figures, as plain JSON values."""
    return {
        **plan.plain(),
        "space_source": plan.space.source,
        "rungs_steps": list(plan.until),
        "trials_by_state": {
            state: sum(t.state == state for t in found.told) for state in ("complete", "pruned", "failed")
        },
        "winner": {"trial": found.winner.number, "settings": found.winner.settings},
        "tuning_score": {"value": found.winner.value, "seeds": found.winner.seeds},
        "test_score": {"winner": found.test.seeds, "default": found.default.seeds},
        "gain": gain(found)._asdict(),
        "drop": drop(found)._asdict(),
        "importance": found.importance,
        "cost": {"search": found.search._asdict(), "test": found.retest._asdict()},
        **provenance_of(plan.base.device if plan.base.device != "auto" else "cpu", plan.base.threads),
    }


def best_so_far(told: Sequence[Told]) -> list[tuple[int, float]]:
    """The largest value of completed trials up to each of them, as (number of the trial, value)."""
    found: list[tuple[int, float]] = []
    for trial in told:
        if trial.state == "complete" and trial.value is not None:
            found.append((trial.number, max(trial.value, found[-1][1] if found else -math.inf)))
    return found


def incumbents(told: Sequence[Told], plan: Plan) -> bytes:
    """PNG of the value of each trial, and of the best so far."""
    page = new_page(3.2, 1)
    axes = page.subplots()
    for state, colour, marker in (("complete", "#0072B2", "o"), ("pruned", "#888888", "x")):
        here = [(t.number, t.value) for t in told if t.state == state and t.value is not None]
        if here:
            axes.plot(*zip(*here, strict=True), marker, color=colour, markersize=4, label=f"{state} ({len(here)})")
    if best := best_so_far(told):
        axes.step(*zip(*best, strict=True), where="post", color="#D55E00", label="best so far")
    style_axes(axes, f"{plan.objective} over {len(plan.tuning_seeds)} tuning seeds")
    axes.set_xlabel("Trial")
    axes.set_title(f"{plan.algorithm}, {plan.base.task}")
    return as_png(page, 3)


# --- the page ---


def _page(found: Tuned, plan: Plan, picture: bytes, about: dict[str, Any]) -> str:
    title = f"{plan.algorithm}, {plan.base.task}"
    image = base64.b64encode(picture).decode()
    importance = [(name, float(share)) for name, share in found.importance.items()]
    parts = [
        f"<h1>Tuning: {escape(title)}</h1>\n<p>{escape(_sentence(found, plan))}</p>",
        f"<h2>Test</h2>\n{html_table(('What', 'Mean', '95 % interval', 'Seeds'), _score_rows(found, plan))}",
        f"<h2>Winner: trial {found.winner.number}</h2>",
        html_table(("Setting", "Winner", "Default"), _setting_rows(found, plan)),
        f'<h2>Trials</h2>\n<figure><img src="data:image/png;base64,{image}" alt="Value of each trial"></figure>',
        html_table(("Parameter", "Importance"), importance) if importance else "",
        f"<details><summary>All trials</summary>{html_table(_TRIAL, _trial_rows(found.told))}</details>",
        f"<h2>Cost</h2>\n{html_table(_COST, [('Search', *found.search), ('Test', *found.retest)])}",
        f"<h2>Checklist</h2>\n{html_table(('What', ''), _checklist(plan, about))}",
        f"<h2>How the numbers were computed</h2>\n<ul>{''.join(f'<li>{escape(text)}</li>' for text in METHOD)}</ul>",
    ]
    return tuning_page(title, parts)


def tuning_page(title: str, parts: Iterable[str]) -> str:
    """A page of these parts, those that are not empty."""
    head = f'<meta charset="utf-8"><title>{escape(title)}: deeprl tune</title><style>{CSS}</style>'
    body = "\n".join(filter(None, parts))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def origin_rows(about: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    """Where figures come from, the last rows of a checklist. about: with what `provenance_of` gives."""
    yield "Computed on", f"{about['device']}; " + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    yield "Commit", about["commit"]
    yield "Again with", about["command"]


def score_row(name: str, score: Score, seeds: Iterable[int]) -> Sequence[Any]:
    """Name, mean, interval and seeds."""
    values = score.whole
    spread = interval_text(*mean_interval(values)) if values else ""
    return name, float(np.mean(values)) if values else math.nan, spread, ", ".join(map(str, seeds))


_TRIAL = ("Trial", "State", "Value", "Steps", "Seeds", "Settings")
_COST = ("", "Agent steps", "Evaluation episodes", "Steps in these", "Wall s")


def _sentence(found: Tuned, plan: Plan) -> str:
    difference = gain(found)
    said = verdict(difference, difference.p)
    what = {"better": "is better than", "worse": "is worse than", "not shown": "is not shown to differ from"}[said]
    whose = f"On {len(plan.test_seeds)} test seeds the winner of {plan.trials} trials"
    return f"{whose} {what} the default: {_difference(difference)}."


def _score_rows(found: Tuned, plan: Plan) -> Iterable[Sequence[Any]]:
    for name, score, seeds in (
        ("Winner, tuning seeds", Score(found.winner.seeds), plan.tuning_seeds),
        ("Winner, test seeds", found.test, plan.test_seeds),
        ("Default, test seeds", found.default, plan.test_seeds),
    ):
        yield score_row(name, score, seeds)
    for name, one in (
        ("Winner minus default, test seeds", gain(found)),
        ("Drop of the winner, tuning minus test", drop(found)),
    ):
        yield name, one.value, interval_text(one.low, one.high), f"p = {one.p:.2g}" if not math.isnan(one.p) else ""


def _setting_rows(found: Tuned, plan: Plan) -> Iterable[Sequence[Any]]:
    for name, value in found.winner.settings.items():
        yield name, _plain(value), _plain(getattr(plan.base, name))


def _trial_rows(told: Sequence[Told]) -> Iterable[Sequence[Any]]:
    for t in told:
        seeds = ", ".join("diverged" if v is None else number_text(v) for v in t.seeds)
        settings = ", ".join(f"{k}={_plain(v)}" for k, v in t.settings.items())
        yield t.number, t.state, math.nan if t.value is None else t.value, t.steps, seeds, settings


def _checklist(plan: Plan, about: dict[str, Any]) -> Iterable[Sequence[Any]]:
    halving = f", successive halving at {', '.join(f'{n:,}' for n in plan.until)} steps (eta {plan.eta})"
    yield "Searched by", f"Optuna, {plan.sampler}, seed {plan.seed}" + (halving if plan.scheduler == "halving" else "")
    yield "Space", f"{json.dumps(plan.space.plain())}; {plan.space.source}"
    yield "Budget", f"{plan.trials} trials x {len(plan.tuning_seeds)} seeds x {plan.base.steps:,} steps"
    yield "Objective", f"{plan.objective} over the tuning seeds of the mean of the last {plan.last} evaluations"
    yield "Tuning seeds", ", ".join(map(str, plan.tuning_seeds))
    yield "Test seeds", ", ".join(map(str, plan.test_seeds))
    yield from origin_rows(about)


def _write_trials(path: Path, told: Sequence[Told]) -> None:
    names = list(dict.fromkeys(name for trial in told for name in trial.settings))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", "value", "steps", "seeds", *names])
        for t in told:
            settings = [_plain(t.settings.get(name, "")) for name in names]
            writer.writerow([t.number, t.state, t.value, t.steps, json.dumps(t.seeds), *settings])


def between(one: Score, other: Score) -> Difference:
    """Of two scores, where the agents that diverged are left out; NaN where none is left."""
    if not one.whole or not other.whole:
        return Difference(*[math.nan] * 4)
    return welch(one.whole, other.whole)


def _difference(one: Difference) -> str:
    return with_interval(one.value, one.low, one.high)


def score_told(score: Score) -> str:
    """The mean of a score with its interval, and how many agents diverged."""
    values = score.whole
    diverged = f", {len(score.seeds) - len(values)} diverged" if len(values) < len(score.seeds) else ""
    if not values:
        return "nothing: all diverged"
    mean = number_text(float(np.mean(values)))
    return f"{mean} ({interval_text(*mean_interval(values))}, {len(values)} seeds{diverged})"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
