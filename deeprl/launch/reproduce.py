"""Run a report again and compare: what is equal to the bit, what within intervals, and what is neither.

Every population of `report.json` is trained anew with the settings of its record, as it was executed then, in a
directory of its own below `out`. Called again it goes on.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.stats import ttest_ind

from deeprl.config import build
from deeprl.data.source import find_again
from deeprl.errors import DeeprlError, nearest
from deeprl.launch.planned import Planned
from deeprl.reporting.read import read_runs
from deeprl.reporting.record import read_record
from deeprl.run import provenance
from deeprl.run.directory import EXECUTION
from deeprl.run.extension import train_on
from deeprl.run.progress import show
from deeprl.run.targets import check_table
from deeprl.run.trained import algorithm_module

EQUAL, WITHIN, OUTSIDE, MISSING = "equal", "within", "outside", "missing"
VERDICT_COLUMNS = ("cell", "name", "env", "step", "unit", "seeds", "verdict", "before", "now", "difference", "lo", "hi")
_LEVEL = 0.95  # of the intervals of a cell, all its steps together
_HERE = {"max_hours": 0.0, "snapshot_every": 0, "keep_replay": False, "track": "none"}  # settings of no consequence

Returns = dict[int, tuple[float, ...]]  # of an agent's episodes by step


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A row of a cell: its agents at a step. before, now: their means; low, high: bounds for the difference, NaN where
    there are none."""

    cell: Mapping[str, Any]
    step: int
    unit: str
    seeds: int
    verdict: str
    before: float
    now: float
    low: float = math.nan
    high: float = math.nan

    def values(self) -> tuple[Any, ...]:
        """In the order of `VERDICT_COLUMNS`."""
        of = (self.cell.get("cell", ""), self.cell["name"], self.cell["env"], self.step, self.unit, self.seeds)
        return (*of, self.verdict, self.before, self.now, self.now - self.before, self.low, self.high)


def reproduce(
    report: str | Path, out: str | Path | None = None, only: str | None = None, device: str | None = None
) -> tuple[Path, list[Verdict]]:
    """Train what a report is made of again. Returns the CSV file of all verdicts, and these.

    report: its directory, or its `report.json`. out: where to train, by default runs/reproduced/TITLE. only: a cell, by
    its name or key: the populations with agents of it are trained whole, since their numbers depend on that to the
    last bits. device: in place of those of the record.

    Raises DeeprlError for a file that is no such record, a cell that is not in it, datasets that have changed.
    """
    record = read_record(report)
    title = PurePosixPath(str(record.get("title"))).name.strip(".") or "report"
    folder = Path(out) if out is not None else Path("runs/reproduced", title)
    cells = _chosen(record["cells"], only)
    rows = [row for row in record["rows"] if row["cell"] in cells]
    names = {row["run"] for row in rows}
    runs = [run for run in record["runs"] if run["run"] in names]
    table = folder / "reproduction.csv"
    check_table(table, VERDICT_COLUMNS)
    plan = {run["run"]: _again(run, folder, device) for run in runs}
    for planned in plan.values():
        with contextlib.chdir("."):
            planned.check()
    for number, (run, planned) in enumerate(zip(runs, plan.values(), strict=True), 1):
        _train(f"[{number}/{len(plan)}] {planned.name}", run, planned)
    found = {
        (name, agent.member): {at.step: at.returns for at in agent.evaluations}
        for name, planned in plan.items()
        for agent in read_runs(planned.directory)[0].agents
    }
    verdicts = [
        v for place, cell in cells.items() for v in judged(cell, [r for r in rows if r["cell"] == place], found)
    ]
    _write(table, verdicts)
    return table, verdicts


def _chosen(cells: Sequence[Mapping[str, Any]], only: str | None) -> dict[int, Mapping[str, Any]]:
    """The cells to reproduce by their places."""
    chosen = {i: cell for i, cell in enumerate(cells) if only in (None, cell.get("cell"), cell["name"])}
    if not chosen:
        names = list(dict.fromkeys(str(cell["name"]) for cell in cells))
        hint = nearest(only or "", names) or f"; there are {', '.join(names) or 'none'}"
        raise DeeprlError(f"only: the report has no cell {only!r}{hint}")
    return chosen


def _again(run: Mapping[str, Any], folder: Path, device: str | None) -> Planned:
    """A population as its record says, executed as it was in the end."""
    name, algorithm = PurePosixPath(run["run"]), str(run["algorithm"])
    if name.is_absolute() or ".." in name.parts:
        raise DeeprlError(f"{run['run']!r} is no name of a run below a directory")
    if run.get("custom_net"):
        raise DeeprlError(
            f"{name}: its networks were passed from Python ({run['custom_net']}), so that no command can train it"
            " again; leave it out with --only"
        )
    executed = {k: v for k, v in run.get("execution", {}).items() if k in EXECUTION and k != "compile"}
    if "compile" in run.get("execution", {}):
        executed["compile"] = "on" if run["execution"]["compile"] else "off"
    place = folder / (name if name.parts else f"{algorithm}_{'-'.join(map(str, run['seeds']))}")
    own = _HERE | executed | ({"device": device} if device else {}) | {"out": str(place)}
    settings = {**run["config"], **own, **_datasets(name, run)}
    known = {field.name for field in dataclasses.fields(algorithm_module(algorithm).Config)}
    return Planned(algorithm, build(algorithm_module(algorithm).Config, _kept(settings, known, run["config"])))


def _kept(settings: Mapping[str, Any], known: set[str], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that this version has, and those of the record, which are refused by name where it has not."""
    return {k: v for k, v in settings.items() if k in known or k in recorded}


def _datasets(name: PurePosixPath, run: Mapping[str, Any]) -> dict[str, Any]:
    """Where the datasets of a run lie now. Raises DeeprlError for one that is gone or has changed."""
    places = {}
    for source, known in run.get("datasets", {}).items():
        places[source], now = find_again(source, run["datasets"])
        if now["sha256"] != known["sha256"]:
            raise DeeprlError(f"{name}: {source} is not the file that it was when this run learned from it")
    named = run["config"].get("dataset")
    if not places:
        return {}
    return {"dataset": [places[source] for source in named] if isinstance(named, list) else places[named]}


def _train(name: str, run: Mapping[str, Any], planned: Planned) -> None:
    for line in _other_conditions(run):
        show(f"{name}: {line}")
    if planned.finished():
        show(f"{name}: finished before")
        return
    show(f"{name}: {len(planned.config.seeds)} agents x {planned.config.steps:,} steps")
    with contextlib.chdir("."):
        train_on(planned.algorithm, planned.config, algorithm_module(planned.algorithm).train)


def _other_conditions(run: Mapping[str, Any]) -> Iterable[str]:
    """Why numbers may differ in the last bits, and so in the end."""
    was, now = run.get("versions", {}), provenance.versions()
    differ = [f"{k} {was[k]} then, {now.get(k, 'none')} now" for k in was if was[k] != now.get(k)]
    commit = provenance.commit()
    if run.get("commit") and run["commit"] != commit:
        differ.append(f"commit {run['commit']} then, {commit or 'unknown'} now")
    if differ:
        yield f"other versions ({', '.join(differ)}): equality to the bit is not promised"
    for change in run.get("changes", []):
        if change.get("name") != "steps":
            yield f"it had gone on under another {change.get('name')} at step {change.get('step')}"


def judged(
    cell: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], found: Mapping[tuple[str, int], Returns]
) -> list[Verdict]:
    """The verdicts on a cell, step by step. rows: its part of the record; found: what agents came to now.

    A row is equal where all episodes of all its agents are. Else it is within where 0 lies in Welch's t interval for
    the difference of the means over seeds; the intervals of a cell hold together with 95 %, by Bonferroni's correction
    for those that are asked for. With one seed, or numbers that are not finite, there is none.
    """
    steps: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        steps.setdefault(int(row["step"]), []).append(row)
    pairs = {
        step: [(tuple(r["returns"]), found.get((r["run"], r["member"]), {}).get(step)) for r in own]
        for step, own in sorted(steps.items())
    }
    unequal = sum(any(map(_differ, own)) for own in pairs.values())
    level = 1 - (1 - _LEVEL) / max(unequal, 1)
    return [_verdict(cell, step, str(steps[step][0].get("unit", "")), own, level) for step, own in pairs.items()]


def _verdict(cell: Mapping[str, Any], step: int, unit: str, pairs: Sequence[tuple[Any, Any]], level: float) -> Verdict:
    before = np.array([np.mean(was) for was, _ in pairs])
    now = np.array([math.nan if is_now is None else np.mean(is_now) for _, is_now in pairs])
    means = float(before.mean()), float(now.mean())
    if any(is_now is None for _, is_now in pairs):
        return Verdict(cell, step, unit, len(pairs), MISSING, *means)
    if not any(map(_differ, pairs)):
        return Verdict(cell, step, unit, len(pairs), EQUAL, *means)
    if len(pairs) < 2 or not np.isfinite([*before, *now]).all():
        return Verdict(cell, step, unit, len(pairs), OUTSIDE, *means)
    if before.std() == now.std() == 0.0:
        low = high = means[1] - means[0]
    else:
        low, high = map(float, ttest_ind(now, before, equal_var=False).confidence_interval(level))
    return Verdict(cell, step, unit, len(pairs), WITHIN if low <= 0.0 <= high else OUTSIDE, *means, low, high)


def _differ(pair: tuple[Any, Any]) -> bool:
    """Whether episodes are not those of the record, bit by bit; what is not a number is equal to itself."""
    was, is_now = pair
    return is_now is None or not np.array_equal(was, is_now, equal_nan=True)


def summed_up(verdicts: Sequence[Verdict]) -> list[str]:
    """Lines on what was found: one for each cell, those outside one by one, and all together."""
    lines, cells = [], {id(v.cell): v.cell for v in verdicts}
    for cell in cells.values():
        own = [v for v in verdicts if v.cell is cell]
        lines.append(f"{cell['name']} on {cell['env']}: {_counted(own)}")
        for v in own:
            if v.verdict in (OUTSIDE, MISSING):
                bounds = "no interval" if math.isnan(v.low) else f"its interval {v.low:,.4g} to {v.high:,.4g}"
                now = "nothing now" if v.verdict == MISSING else f"{v.now:,.4g} now, difference {v.now - v.before:,.4g}"
                lines.append(f"  {v.step:,} {v.unit}: {v.before:,.4g} in the report, {now}; {bounds}")
    return [*lines, f"all: {_counted(verdicts)}"]


def _counted(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(v.verdict for v in verdicts)
    told = f"{counts[EQUAL]} of {len(verdicts)} rows equal to the bit, {counts[WITHIN]} within the intervals"
    rest = [f"{counts[kind]} {kind}" for kind in (OUTSIDE, MISSING) if counts[kind]]
    return ", ".join([told, *rest])


def _write(path: Path, verdicts: Iterable[Verdict]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(VERDICT_COLUMNS)
        for verdict in verdicts:
            values = verdict.values()
            writer.writerow("" if isinstance(v, float) and math.isnan(v) else v for v in values)
    os.replace(temporary, path)
