"""`deeprl compare`: algorithms beside the first one of them, with intervals and verdicts."""

from __future__ import annotations

import argparse
import csv
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from deeprl.errors import DeeprlError
from deeprl.reporting.comparison import ROW_COLUMNS, Comparison, compare, comparison_rows, steps_text
from deeprl.reporting.entrants import read_entrants
from deeprl.reporting.overall import Estimate
from deeprl.reporting.panels import interval_panels
from deeprl.reporting.wording import with_interval
from deeprl.run.targets import check_picture, check_table

_WIDTH = 118


def run(options: argparse.Namespace) -> int:
    """The command."""
    if options.at is not None and options.at < 1:
        raise DeeprlError(f"--at: must be positive, not {options.at}")
    if options.csv:
        check_table(options.csv, ROW_COLUMNS)
    if options.png:
        check_picture(options.png)
    found = compare(read_entrants(options.sources), options.at)
    print("\n".join(told(found)))
    if options.csv:
        _write_table(Path(options.csv), found)
        print(f"rows: {options.csv}")
    if options.png:
        Path(options.png).parent.mkdir(parents=True, exist_ok=True)
        Path(options.png).write_bytes(_picture(found))
        print(f"picture: {options.png}")
    return 0


def told(found: Comparison) -> list[str]:
    """A comparison as lines of text."""
    head = ("", "seeds", "at", "mean return", f"minus {found.names[0]}", "p (Holm)", "P(above it)", "verdict")
    blocks = [(f"{env}, {found.units[env]}", _lines(env, found)) for env in found.standings]
    widths = [max(map(len, column)) for column in zip(head, *(row for _, rows in blocks for row in rows), strict=True)]
    lines = []
    for k, (title, rows) in enumerate(blocks):
        lines += [title, *(_joined(row, widths) for row in ([head, *rows] if k == 0 else rows)), ""]
    lines += [*_over_all(found), *textwrap.wrap(_method(found), _WIDTH), ""]
    for note in dict.fromkeys(found.notes):
        lines += textwrap.wrap(f"Note: {note}", _WIDTH, subsequent_indent="  ")
    return lines if lines[-1] else lines[:-1]


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _lines(env: str, found: Comparison) -> list[tuple[str, ...]]:
    duels = {duel.name: duel for duel in found.duels if duel.env == env}
    rows: list[tuple[str, ...]] = []
    for name in (name for name in found.names if name in found.standings[env]):
        own = found.standings[env][name]
        row: tuple[str, ...] = (name, str(len(own.samples)), steps_text(own.steps), with_interval(*own.mean))
        if duel := duels.get(name):
            test = duel.difference
            difference = with_interval(test.value, test.low, test.high)
            row += (difference, _p(duel.adjusted_p), with_interval(*duel.chance), duel.verdict)
        rows.append(row if duel else (*row, "", "", "", ""))
    return rows


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _over_all(found: Comparison) -> list[str]:
    if found.together is None:
        return []
    title = f"Over {len(found.together.tasks)} tasks, scores normalised by {found.together.how}"
    rows = [
        (name, f"IQM {with_interval(*found.iqms[name])}", "", "")
        if name not in found.chances
        else (name, f"IQM {with_interval(*found.iqms[name])}", "P(above it)", with_interval(*found.chances[name]))
        for name in found.names
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [*textwrap.wrap(title, _WIDTH), *(_joined(row, widths) for row in rows), ""]


def _method(found: Comparison) -> str:
    count, reference = len(found.duels), found.names[0]
    corrected = f"; p is corrected for the {count} verdicts of this table (Holm), so that they hold together"
    return (
        "Returns of one policy of each seed, at the steps named: never the best of several looks. Mean: 95 % t "
        f"interval; minus {reference}: Welch's 95 % interval; P(above it): the chance that a run is above one of "
        f"{reference}, ties as half, with a 95 % bootstrap interval that is too narrow below about 10 seeds. A verdict "
        f"needs an interval of the difference without 0 and p at most 0.05{corrected if count > 1 else ''}."
    )


def _write_table(path: Path, found: Comparison) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ROW_COLUMNS)
        for row in comparison_rows(found):
            writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row.values()])


def _picture(found: Comparison) -> bytes:
    panels: dict[str, dict[str, Estimate]] = {
        env: {name: standing.mean for name, standing in own.items()} for env, own in found.standings.items()
    }
    if found.together is not None:
        panels[f"IQM over {len(found.together.tasks)} tasks"] = found.iqms
    return interval_panels(panels, found.names)
