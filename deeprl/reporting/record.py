"""`report.json`: what a report is made of, for programs, and to run all of it again (`deeprl reproduce`).

command, title, written_by (versions, commit)
runs: name below the directory, algorithm, config (all settings), config_hash, seeds, commit, versions, device,
      execution, command, datasets, changes, state, step
cells: a row of `summary.csv` each, with the `name` of the cell; null for what is not a number
rows: run, member, seed, cell (its place in `cells`), step, unit, returns of all episodes, to the bit
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError, first_line
from deeprl.reporting.cells import Cell
from deeprl.reporting.read import Pairs, RunRecord
from deeprl.run import provenance

RECORD_FORMAT, RECORD_FILE = 1, "report.json"
_OF_RUN = (
    *("algorithm", "config", "config_hash", "commit", "versions", "device", "execution", "command"),
    *("datasets", "changes", "custom_net"),
)


def write_record(
    folder: Path, title: str, runs: Sequence[RunRecord], cells: Mapping[Cell, Pairs], summary: Iterable[Mapping]
) -> None:
    """Write `report.json` beside the page of a report.

    summary: what `summary.csv` has of each cell.
    """
    record = {
        "format": RECORD_FORMAT,
        "title": title,
        "command": again(folder),
        "written_by": {"versions": provenance.versions(), "commit": provenance.commit()},
        "runs": [_run_of(run) for run in runs],
        "cells": [{"name": cell.name, **_plain(row)} for cell, row in zip(cells, summary, strict=True)],
        "rows": [row for place, pairs in enumerate(cells.values()) for row in rows_of_cell(place, pairs)],
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def again(folder: Path) -> str:
    """The command that trains anew what a report in this directory is made of."""
    return shlex.join(["deeprl", "reproduce", str(folder)])


def rows_of_cell(place: int, pairs: Pairs) -> Iterable[dict[str, Any]]:
    """A row for each evaluation of the agents of a cell. place: its number."""
    for run, agent in pairs:
        of = {"run": run.name, "member": agent.member, "seed": agent.seed, "cell": place}
        for at in agent.evaluations:
            yield {**of, "step": at.step, "unit": run.unit.name, "returns": list(at.returns)}


def read_record(path: str | Path) -> dict[str, Any]:
    """`report.json`, given itself or by the directory of its report. Raises DeeprlError for anything else."""
    file = Path(path) / RECORD_FILE if Path(path).is_dir() else Path(path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DeeprlError(f"{path}: no {RECORD_FILE} there; `deeprl report` writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DeeprlError(f"{file}: {first_line(error)}") from error
    kinds = {"runs": list, "cells": list, "rows": list}
    if not isinstance(record, dict) or any(not isinstance(record.get(k), kind) for k, kind in kinds.items()):
        raise DeeprlError(f"{file} is no record of a report")
    if record.get("format") != RECORD_FORMAT:
        raise DeeprlError(f"{file} has format {record.get('format')}; this deeprl reads {RECORD_FORMAT}")
    return record


def _run_of(run: RunRecord) -> dict[str, Any]:
    kept = {name: run.info[name] for name in _OF_RUN if name in run.info}
    ended = {"state": run.status.get("state", "none"), "step": run.status.get("step", 0)}
    return {"run": run.name, "seeds": [agent.seed for agent in run.agents], **kept, **ended}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
