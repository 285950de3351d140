"""Benchmark rows: one for each agent and evaluation, in Python and as a CSV file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError
from deeprl.reporting.cells import Cell
from deeprl.reporting.read import AgentRecord, Evaluation, RunRecord, group, read_runs

COLUMNS = (
    *("algorithm", "env", "seed", "step", "return", "score", "wall_s", "updates_per_s"),
    *("commit", "config_hash", "torch", "device", "command", "unit"),
)
OLDER = COLUMNS[:-1]  # of files from before there was a unit
# What stays the same when a run goes on or is read again; the hash stands for all settings.
EVALUATION = ("algorithm", "env", "seed", "step", "return", "config_hash")
_PLACES = [COLUMNS.index(column) for column in EVALUATION]


def results(directory: str | Path) -> list[dict[str, Any]]:
    """One row per run, member and evaluation step below `directory`; `pandas.DataFrame(results(d))` is a tidy table.

    Columns: those of a benchmark row (`COLUMNS`), then `member`, `label`, `settings`, `cell` and `frozen` (bool: the
    agent had diverged and been frozen by that step). Rows of equal `cell` and `label` differ in their seed
    alone: they are the samples that reports take a mean of. `settings` is the JSON text of what tells a cell from the
    others in `directory` with its algorithm, env and label (`deeprl.reporting.cells.identity`). `step` counts what
    `unit` says, of one agent: simulator steps, decisions of Atari games, or gradient steps if it learns from a
    dataset, whose name `env` is then.
    `return` is the mean over the evaluation episodes of that step, `score` is None where no normalisation exists,
    `wall_s` counts seconds from the start of the run, `updates_per_s` is the speed of all its agents together.

    Raises:
        DeeprlError: no run there; a file that cannot be read, named with its row.
    """
    runs = read_runs(directory)
    cells = {(run.name, agent.member): cell for cell, pairs in group(runs).items() for run, agent in pairs}
    return [
        _row(run, agent, at, cells[run.name, agent.member])
        for run in runs
        for agent in run.agents
        for at in agent.evaluations
    ]


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append benchmark rows to a CSV file in the order of `COLUMNS`; other keys are left out, None becomes empty.

    The algorithm of rows with a label is written as `algorithm:label`.

    A new file gets the header. Evaluations that the file holds already are not written again: neither those of the same
    rows, nor of a run that has gone on since. Rows are of one evaluation if they are equal in `EVALUATION`; in all else
    (times, speed, device, commit, command) the row stays as it was first written. What occurs twice in `rows` (two
    agents, equal in everything) is kept twice. A file without the column `unit`, of earlier versions, gets none.

    Raises:
        DeeprlError: the file has another header; a row lacks a column.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = list(csv.reader(io.StringIO(text)))
    columns = tuple(lines[0]) if lines else COLUMNS
    if columns not in (COLUMNS, OLDER):
        raise DeeprlError(f"{path} has the header {','.join(lines[0])}; benchmark rows have {','.join(COLUMNS)}")
    present = Counter(_evaluation(line) for line in lines[1:] if len(line) == len(columns))
    new: list[list[str]] = [] if lines else [list(COLUMNS)]
    for number, row in enumerate(rows):
        if missing := [column for column in COLUMNS if column not in row]:
            raise DeeprlError(f"row {number} for {path} lacks {', '.join(missing)}")
        named = dict(row) | ({"algorithm": f"{row['algorithm']}:{row['label']}"} if row.get("label") else {})
        values = ["" if named[column] is None else str(named[column]) for column in columns]
        if present[_evaluation(values)] > 0:
            present[_evaluation(values)] -= 1
        else:
            new.append(values)
    with path.open("a", newline="", encoding="utf-8") as file:
        if text and not text.endswith("\n"):
            file.write("\n")
        csv.writer(file, lineterminator="\n").writerows(new)


def _evaluation(values: list[str]) -> tuple[str, ...]:
    """What `EVALUATION` says; a dataset has folders before its name where others of that name are read beside it."""
    algorithm, env, *rest = (values[place] for place in _PLACES)
    return (algorithm, env.rpartition("/")[2], *rest)


def _row(run: RunRecord, agent: AgentRecord, at: Evaluation, cell: Cell) -> dict[str, Any]:
    info = run.info
    values = (
        *(cell.algorithm, cell.env, agent.seed, at.step, at.mean, run.score(at.mean)),
        *(at.wall_s, run.status.get("updates_per_s")),
        *(info.get("commit", ""), info.get("config_hash", ""), info.get("versions", {}).get("torch", "")),
        *(info.get("device", ""), info.get("command", ""), run.unit.name),
    )
    extra = {
        "member": agent.member,
        "label": cell.label,
        "settings": cell.settings,
        "cell": cell.key,
        "frozen": agent.frozen is not None and at.step >= agent.frozen.get("step", 0),
    }
    return dict(zip(COLUMNS, values, strict=True)) | extra
