"""The report of a sweep: statistics over seeds, learning curves, one HTML page that needs nothing from the net.

    deeprl report DIR [--published FILE ...] [--peer NAME=PATH ...]

Every number is explained on the page itself (`method.METHOD`); the statistics are those of `deeprl.reporting.stats`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.envs.units import repeats
from deeprl.reporting.cells import Cell
from deeprl.reporting.checklist import write_evaluation_seeds
from deeprl.reporting.curves import Published, figure, known_bounds
from deeprl.reporting.frequency import drawn_by_period, score, steady
from deeprl.reporting.others import beside_others, read_others
from deeprl.reporting.overall import Sample, SampleCurve, aggregates, over_steps, overall
from deeprl.reporting.page import Contents, Picture, page_of
from deeprl.reporting.panels import curves_picture, efficiency_picture, interval_panels, profile_picture
from deeprl.reporting.peers import Peer
from deeprl.reporting.read import Pairs, group, read_runs, unit_name
from deeprl.reporting.record import write_record
from deeprl.reporting.remarks import remarks
from deeprl.reporting.summary import score_of, summarise, write_summary
from deeprl.run.targets import begin_report

Figures = dict[tuple[str, str], dict[Cell, Pairs]]  # cells by what they are drawn in, and the unit of their steps
_SEVERAL = 3  # tasks that are drawn in one picture as well


def write_report(
    directory: str | Path,
    out: str | Path | None = None,
    published: Sequence[str | Path] = (),
    peers: Sequence[Peer] = (),
) -> Path:
    """Write `index.html`, its pictures, `summary.csv`, `evaluation_seeds.csv` and `config.json`; return the HTML path.

    Args:
        directory: a sweep, or a single run: every run directory at or below it is read.
        out: where to write; `<directory>/report` if None. Files of an earlier report are replaced.
        published: files of curves of others to show beside these (`deeprl.reporting.curves.read_published`).
        peers: what other libraries recorded (`deeprl.reporting.peers`).

    Raises:
        DeeprlError: no run there; a file that cannot be read, named with its row; `out` holds something else than an
            earlier report.
    """
    runs = read_runs(directory)
    cells = group(runs)
    folder = Path(out) if out is not None else Path(directory) / "report"
    others = read_others(published, peers)
    begin_report(folder)
    summary = [summarise(cell, pairs) for cell, pairs in cells.items()]
    contents = Contents(Path(directory).resolve().name, folder, runs, cells, summary, remarks(runs, cells))
    figures = _figures(cells)
    _add_curves(contents, figures, others)
    _add_all_tasks(contents, figures)
    _add_periods(contents)
    if others and not {env for env, _ in figures} & set(others):
        known = ", ".join(sorted(others))
        contents.notes.append(f"Others: there is no curve of these environments; there are curves of {known}.")
    contents.others, left_out = beside_others(figures, others)
    contents.notes += left_out
    write_summary(folder / "summary.csv", summary)
    write_evaluation_seeds(folder / "evaluation_seeds.csv", cells)
    configs = [{"run": run.name, **run.info, "status": run.status} for run in runs]
    (folder / "config.json").write_text(json.dumps(configs, indent=1), encoding="utf-8")
    (folder / "index.html").write_text(page_of(contents), encoding="utf-8")
    write_record(folder, contents.title, runs, cells, summary)
    return folder / "index.html"


def _figures(cells: Mapping[Cell, Pairs]) -> Figures:
    """Cells by what they are drawn in: the environment that they act in, or their dataset; and the unit of their steps.

    Those that act in an environment and learn from a dataset as well have it in their name there.
    """
    figures: Figures = {}
    for cell, pairs in cells.items():
        env = pairs[0][0].env or cell.env
        figures.setdefault((env, unit_name(pairs)), {})[cell._replace(name=_name_in(env, cell))] = pairs
    return figures


def _name_in(env: str, cell: Cell) -> str:
    """The name of a cell among others of an environment, with its dataset if it has one."""
    return cell.name if env == cell.env else f"{cell.name}, {cell.env}"


def _order(figures: Figures) -> list[str]:
    """Names in the order that gives them their style, the same everywhere."""
    return sorted({cell.name for here in figures.values() for cell in here})


def _add_curves(contents: Contents, figures: Figures, others: Mapping[str, Published]) -> None:
    """A picture of each task, and of all of them where there are several."""
    for (env, _), here in figures.items():
        drawn, left_out = figure(env, here, _order(figures), others.get(env, {}))
        _keep(contents, contents.curves, Picture(f"Learning curves on {env}", drawn), f"curve_{env}")
        contents.notes += left_out
    if len(figures) < _SEVERAL:
        return
    tasks, units, bounds = {}, {}, {}
    for (env, unit), here in figures.items():
        title = env if [other for other, _ in figures].count(env) == 1 else f"{env} ({unit})"
        curves = {c.name: [{at.step: at.mean for at in a.evaluations} for _, a in p] for c, p in here.items()}
        tasks[title], units[title], bounds[title] = curves, unit, known_bounds(here)
    drawn = curves_picture(tasks, _order(figures), units, bounds)
    _keep(contents, contents.many, Picture("Learning curves on all tasks", drawn), "over_all_tasks_curves")


def _add_all_tasks(contents: Contents, figures: Figures) -> None:
    """Aggregates and profiles, where several tasks have scores, or several algorithms that can be put between."""
    curves: dict[str, dict[str, list[SampleCurve]]] = {}
    for cell, pairs in contents.cells.items():
        curves.setdefault(cell.name, {})[cell.env] = [
            {at.step: Sample(at.mean, score_of(pairs, at.mean)) for at in agent.evaluations} for _, agent in pairs
        ]
    curves = {name: own for name, own in curves.items() if len(own) > 1}
    finals = {
        name: {task: [seed[max(seed)] for seed in seeds] for task, seeds in own.items()} for name, own in curves.items()
    }
    together = overall(finals)
    if together is None:
        return
    contents.how = together.how
    contents.notes += together.notes
    contents.aggregates = aggregates(together.scores)
    order = sorted({*_order(figures), *together.scores})
    drawn = {"bars": interval_panels(contents.aggregates, order), "profiles": profile_picture(together.scores, order)}
    steps, tables = over_steps(together, curves)
    units = {unit for (_, unit), here in figures.items() if {cell.name for cell in here} & set(tables)}
    if len(steps) > 1 and len(units) == 1:
        drawn["efficiency"] = efficiency_picture(steps, tables, order, units.pop())
    told = f"{', '.join(together.scores)} on {', '.join(together.tasks)}"
    for title, png in drawn.items():
        picture = Picture(f"{title.capitalize()} over all tasks: {told}", png)
        _keep(contents, contents.all_tasks, picture, f"over_all_tasks_{title}")


def _keep(contents: Contents, shown: list[Picture], picture: Picture, stem: str) -> None:
    """Show a picture, and write it to the folder of the report."""
    shown.append(picture)
    names = [path.name for path in contents.folder.glob("*.png")]
    (contents.folder / _file_name(stem, names)).write_bytes(picture.png)


def _add_periods(contents: Contents) -> None:
    by_period = _by_period(contents.cells)
    contents.notes += [
        f"{run.name}: it was evaluated at decision periods before its last step, which is left out here."
        for run in contents.runs
        if run.has_older_periods()
    ]
    for env, curves in by_period.items():
        returns = {name: [steady(means) for means in agents] for name, agents in curves.items()}
        if any(any(agents) for agents in returns.values()):
            picture = Picture(f"Returns on {env} by decision period", drawn_by_period(env, returns))
            _keep(contents, contents.curves, picture, f"curve_{env}_by_decision_period")
    contents.periods = list(_period_rows(by_period))


def _by_period(cells: Mapping[Cell, Pairs]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Mean returns by decision period of each agent that has some, by the environment of single steps and by cell."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for cell, pairs in cells.items():
        recorded = {run.name: run.periods() for run, _ in pairs}
        for run, agent in pairs:
            if own := recorded[run.name].get(agent.member):
                place = run.info.get("evaluated_in") or run.info["config"]
                others = [name for name in place.get("wrappers") or () if not repeats(name)]
                env = " ".join([str(place["env"]), *others])
                means = {period: float(np.mean(returns)) for period, returns in own.items()}
                found.setdefault(env, {}).setdefault(_name_in(str(place["env"]), cell), []).append(means)
    return found


def _period_rows(by_period: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Iterable[Sequence[Any]]:
    for env, curves in by_period.items():
        for name, agents in curves.items():
            scores = np.array([score(means, env) for means in agents])
            std = float(scores.std(ddof=1)) if len(scores) > 1 else math.nan
            returns = (float(np.mean([m.get(p, math.nan) for m in agents])) for p in ("1", "8", "16", "1 to 16"))
            yield env, name, len(agents), float(scores.mean()), std, *returns


def _file_name(stem: str, taken: Iterable[str]) -> str:
    stem = re.sub(r"[^\w.-]+", "-", stem)
    lowered = {name.lower() for name in taken}
    names = (f"{stem}{suffix}.png" for suffix in ("", *(f"_{k}" for k in range(2, len(lowered) + 3))))
    return next(name for name in names if name.lower() not in lowered)
