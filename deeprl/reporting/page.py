"""The page of a report: one HTML file that needs nothing from the net."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from deeprl.reporting.cells import Cell
from deeprl.reporting.checklist import FACTS, HEADER, checklist_rows, search_fact
from deeprl.reporting.method import METHOD
from deeprl.reporting.others import OTHERS_HEADER
from deeprl.reporting.overall import Estimate
from deeprl.reporting.read import Pairs, RunRecord
from deeprl.reporting.record import RECORD_FILE, again
from deeprl.reporting.summary import Rows
from deeprl.reporting.wording import interval_text, number_text, with_interval

CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --warn: #f59e0b; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
table.fit { width: 100%; table-layout: fixed; }
.fit th, .fit td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; } .fit small { display: block; }
th { background: var(--soft); } td.n { text-align: right; } summary { cursor: pointer; margin: .5rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; } figure { margin: 1rem 0; }
.notes { border-left: 4px solid var(--warn); padding: .2rem 1rem; background: var(--soft); }
"""

# Of the first table, with the share of its width that each column gets.
FIRST_HEADER = {
    "Environment": 20,
    "Cell": 34,
    "Seeds": 8,
    "Mean return, 95 % t interval": 19,
    "IQM, 95 % bootstrap": 19,
}
SUMMARY_HEADER = (
    *("Environment", "Cell", "Seeds", "Steps", "Mean return", "95 % t interval", "Std", "IQM", "95 % bootstrap"),
    *("Score", "95 % t interval", "Episodes", "Wall s", "Agent-updates/s", "Frozen seeds"),
)
SEED_HEADER = ("Environment", "Cell", "Seed", "Steps", "Return", "Episodes", "Remark", "Run")
_RUN = ("Run", "State", "Agents", "Wall s", "First update s", "Agent-updates/s")
PERIOD_HEADER = ("Environment", "Cell", "Seeds", "FAS", "Std", "Return at 1", "At 8", "At 16", "At random, 1 to 16")
RUN_HEADER = (*_RUN, "Device", "Commit", "Hash", "Versions", "Command")
_MANY = 4  # pictures of single tasks: so many are folded
_FILM = re.compile(r"episode_seed_(?P<seed>\d+)(_member_(?P<member>\d+))?(_step_\d+)?\.(gif|mp4)")


class Picture(NamedTuple):
    """A PNG and what it shows."""

    title: str
    png: bytes


@dataclass
class Contents:
    """What a page shows. folder: where it will lie. Over all tasks: pictures, `aggregates` by title and algorithm, and
    `how` scores were normalised there."""

    title: str
    folder: Path
    runs: Sequence[RunRecord]
    cells: Mapping[Cell, Pairs]
    summary: Rows
    notes: list[str]
    curves: list[Picture] = field(default_factory=list)
    many: list[Picture] = field(default_factory=list)
    all_tasks: list[Picture] = field(default_factory=list)
    aggregates: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    how: str = ""
    others: Sequence[Sequence[Any]] = ()
    periods: Sequence[Sequence[Any]] = ()


def _td(value: Any) -> str:
    if isinstance(value, int | float):
        return f'<td class="n">{number_text(value) if isinstance(value, float) else format(value, ",")}</td>'
    return f"<td>{escape(str(value))}</td>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls by itself where it is wider than the page; numbers right, texts escaped."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = ""
    for row in rows:
        body += "<tr>" + "".join(map(_td, row)) + "</tr>\n"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _first_table(contents: Contents) -> str:
    """Five columns within the width of the page, whatever the names: what is too long is broken."""
    widths = "".join(f'<col style="width:{share}%">' for share in FIRST_HEADER.values())
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in FIRST_HEADER)
    body = ""
    for (cell, pairs), row in zip(contents.cells.items(), contents.summary, strict=True):
        film = "".join(f' <a href="{quote(place)}">film</a>' for place in films(pairs, contents.folder)[:1])
        numbers = ((row[key], row[f"{key}_lo"], row[f"{key}_hi"]) for key in ("mean", "iqm"))
        told = "".join(
            f'<td class="n">{number_text(value)}<small>{interval_text(low, high)}</small></td>'
            for value, low, high in numbers
        )
        body += f"<tr>{_td(cell.env)}<td>{escape(cell.name)}{film}</td>{_td(row['seeds'])}{told}</tr>\n"
    return (
        f'<table class="fit"><colgroup>{widths}</colgroup><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>'
    )


def films(pairs: Pairs, folder: Path) -> list[str]:
    """Where the films of a cell's agents lie, that `deeprl watch` made in the directories of their runs: seen from
    `folder`, by seed."""
    found = []
    for run, agent in pairs:
        alike = [other.member for other in run.agents if other.seed == agent.seed]
        for path in sorted(run.path.glob("episode_seed_*")):
            film = _FILM.fullmatch(path.name)
            if film is None or int(film["seed"]) != agent.seed:
                continue
            if len(alike) == 1 or film["member"] == str(agent.member):
                found.append(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())
    return found


def _summary_rows(cells: Mapping[Cell, Pairs], summary: Rows) -> Iterable[Sequence[Any]]:
    for cell, row in zip(cells, summary, strict=True):
        steps = f"{row['step']:,}" if row["step"] == row["step_min"] else f"{row['step_min']:,} to {row['step']:,}"
        steps = f"{steps} {row['unit']}"
        mean = (row["mean"], interval_text(row["mean_lo"], row["mean_hi"]), row["std"])
        middle = (row["iqm"], interval_text(row["iqm_lo"], row["iqm_hi"]))
        rest = (row[key] for key in ("episodes", "wall_s", "updates_per_s", "frozen_seeds"))
        score = (row["score"], interval_text(row["score_lo"], row["score_hi"]))
        yield cell.env, cell.name, row["seeds"], steps, *mean, *middle, *score, *rest


def _run_rows(runs: Sequence[RunRecord]) -> Iterable[Sequence[Any]]:
    for run in runs:
        info = run.info
        versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
        where = (info.get("device", ""), info.get("commit", ""), info.get("config_hash", ""), versions)
        times = (run.number(key) for key in ("wall_s", "first_update_s", "updates_per_s"))
        yield run.name, run.status.get("state", "none"), len(run.agents), *times, *where, info.get("command", "")


def _seed_rows(cells: Mapping[Cell, Pairs]) -> Iterable[Sequence[Any]]:
    for cell, pairs in cells.items():
        for run, agent in pairs:
            remark = ""
            if agent.frozen is not None:
                at = f"{agent.frozen['step']:,} {run.unit.name}"
                remark = f"diverged, frozen after {at}: {agent.frozen.get('cause', '?')}"
            final = agent.final
            steps = f"{final.step:,} {run.unit.name}"
            yield cell.env, cell.name, str(agent.seed), steps, final.mean, len(final.returns), remark, run.name


def _aggregate_rows(found: Mapping[str, Mapping[str, Estimate]]) -> Iterable[Sequence[Any]]:
    for name in next(iter(found.values())):
        yield name, *(with_interval(*by_name[name]) for by_name in found.values())


def _images(pictures: Sequence[Picture]) -> str:
    images = ""
    for title, png in pictures:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        images += f'<figure><img src="{source}" alt="{escape(title)}"></figure>\n'
    return images


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{body}</details>\n"


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>\n" for text in texts) + "</ul>"


def _sections(contents: Contents) -> Iterable[str]:
    """What stands between the first table and the seeds."""
    if contents.all_tasks:
        told = f"<p>Scores are normalised by {escape(contents.how)}.</p>"
        table = html_table(("Algorithm", *contents.aggregates), _aggregate_rows(contents.aggregates))
        yield f"<h2>Over all tasks</h2>\n{told}\n{table}\n{_images(contents.all_tasks)}"
    if contents.others:
        yield f"<h2>Beside others</h2>\n{html_table(OTHERS_HEADER, contents.others)}"
    single = _images(contents.curves)
    single = _folded("Each task alone", single) if len(contents.curves) >= _MANY else single
    yield f"<h2>Learning curves</h2>\n{_images(contents.many)}{single}"
    if contents.periods:
        yield f"<h2>Decision periods</h2>\n{html_table(PERIOD_HEADER, contents.periods)}"
    told = f"trains all of it anew, and tells what is equal to the bit, within the intervals, or neither; {RECORD_FILE}"
    told += " has commands, settings, commits, versions, seeds and returns for programs."
    yield f"<h2>Run it again</h2>\n<p><code>{escape(again(contents.folder))}</code> {told}</p>"
    facts = _list((*FACTS, search_fact(contents.runs)))
    yield f"<h2>Checklist</h2>\n{facts}\n{html_table(HEADER, checklist_rows(contents.cells))}"


def page_of(contents: Contents) -> str:
    """The HTML of a report."""
    title, runs, cells = escape(contents.title), contents.runs, contents.cells
    full = html_table(SUMMARY_HEADER, _summary_rows(cells, contents.summary))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: deeprl report</title><style>{CSS}</style></head><body>
<h1>{title}</h1>
<p>{len(runs)} runs, {sum(len(run.agents) for run in runs)} agents, {len(cells)} cells.</p>
{f'<div class="notes">{_list(contents.notes)}</div>' if contents.notes else ""}
<h2>Final policies</h2>
{_first_table(contents)}
{_folded("All columns: steps, spread, scores, times", full)}
{chr(10).join(_sections(contents))}
<h2>Seeds</h2>
{html_table(SEED_HEADER, _seed_rows(cells))}
<h2>Runs</h2>
{html_table(RUN_HEADER, _run_rows(runs))}
<h2>How the numbers were computed</h2>
{_list(METHOD)}
</body></html>
"""
