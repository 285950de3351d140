"""Read run directories: one `RunRecord` per directory, one `AgentRecord` per member, cells of comparable agents.

A run directory has `config.json` and at least one of `RECORDS` (`deeprl/run/records.py`); before its first evaluation
it has no evaluations.csv. It may be read while its run is writing: as long as the run is unfinished, a last CSV line
without its newline and a last evaluation with episodes missing are left out.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeprl.data.scores import normalized_score
from deeprl.envs.units import Unit, recorded_unit
from deeprl.errors import DeeprlError
from deeprl.reporting.cells import Cell, cells_of, task_of
from deeprl.run.logger import read_column
from deeprl.run.records import COMPLETE, read_about, read_status, run_directories

EPISODE_COLUMNS = ("step", "member", "episode", "return", "wall_s")


class Evaluation(NamedTuple):
    """One agent at one step, in the unit of its run: returns of all episodes, and seconds since the run began."""

    step: int
    returns: tuple[float, ...]
    wall_s: float

    @property
    def mean(self) -> float:
        """Mean return over the episodes: the one number that stands for the policy at this step."""
        return float(np.mean(self.returns))


class Pretraining(NamedTuple):
    """What was before the run of an agent, by gradient steps counted from its beginning (<= 0): means of evaluations
    and of Q-values over a batch."""

    returns: Mapping[int, float]
    q: Mapping[int, float]


@dataclass(frozen=True)
class AgentRecord:
    """One member of a run. `task` is the environment's id, or the name of the dataset that the agent learns from.

    `evaluations` are in order of steps; the last one is the final policy. `frozen` is the entry of `status.json`
    (member, seed, update, step, cause) if the agent diverged. `pretraining` is what it began from, if from a run.
    """

    member: int
    seed: int
    task: str
    evaluations: tuple[Evaluation, ...]
    frozen: Mapping[str, Any] | None
    pretraining: Pretraining | None = None

    @property
    def final(self) -> Evaluation:
        """The last evaluation, never the best."""
        return self.evaluations[-1]


@dataclass(frozen=True)
class RunRecord:
    """One run directory: `info` is `config.json`, `status` is `status.json`, `name` its path below the one read,
    which is `path`."""

    name: str
    info: Mapping[str, Any]
    status: Mapping[str, Any]
    agents: tuple[AgentRecord, ...]
    path: Path

    @property
    def task(self) -> str:
        """Environment id, or the names of the datasets."""
        return ", ".join(dict.fromkeys(agent.task for agent in self.agents))

    @property
    def env(self) -> str:
        """Where its agents act as they learn; empty where they learn from datasets alone."""
        return "" if self.unit.name == "gradient steps" else str(self.info["config"].get("env", ""))

    @property
    def unit(self) -> Unit:
        """What its evaluations count."""
        return recorded_unit(self.info)

    def score(self, ret: float) -> float | None:
        """The normalised score of a return, None where nobody has published what it is measured by."""
        return normalized_score(ret, self.references) if self.references else None

    @property
    def references(self) -> tuple[float, ...]:
        """The returns that a score puts at 0 and 100; empty where there is no score."""
        return tuple(self.info.get("spec", {}).get("score_range") or ())

    @property
    def finished(self) -> bool:
        """Whether training ended by itself: at its last step, or because all agents had diverged."""
        return self.status.get("state") in COMPLETE

    def q(self) -> dict[int, dict[int, float]]:
        """Q-values in training by member and step, in the unit of its evaluations; empty where there are none."""
        found = read_column(self.path / "metrics.csv", "train/q")
        return {m: {step * self.unit.factor: value for step, value in q.items()} for m, q in found.items()}

    def periods(self) -> dict[int, dict[str, list[float]]]:
        """Returns of episodes by member and decision period, where `deeprl evaluate --decision-periods` has left them.

        Those of another step than the last one are left out. Raises DeeprlError for a file that cannot be read.
        """
        found: dict[int, dict[str, list[float]]] = {}
        for step, member, period, ret in self._period_rows:
            if step == self.status.get("step"):
                found.setdefault(member, {}).setdefault(period, []).append(ret)
        return found

    def has_older_periods(self) -> bool:
        """Whether there are returns by decision period of another step than the last one."""
        return any(step != self.status.get("step") for step, *_ in self._period_rows)

    @functools.cached_property
    def _period_rows(self) -> list[tuple[int, int, str, float]]:
        path = self.path / PERIODS_FILE
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        reader, found = csv.DictReader(io.StringIO(text)), []
        for row in reader:
            try:
                found.append((int(row["step"]), int(row["member"]), row["period"], float(row["return"])))
            except (KeyError, TypeError, ValueError) as error:
                raise DeeprlError(f"{path} row {reader.line_num} is broken: {error}") from error
        return found

    def number(self, key: str) -> float:
        """A number of `status.json`; NaN if it is not there yet."""
        value = self.status.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")


Pairs = list[tuple[RunRecord, AgentRecord]]
PERIODS_FILE = "decision_periods.csv"  # step, period, member, seed, episode, return, length


def unit_name(pairs: Pairs) -> str:
    """What the steps of a cell are."""
    return pairs[0][0].unit.name


def read_runs(directory: str | Path) -> list[RunRecord]:
    """Every run at or below `directory`, sorted by path, each once; links are followed.

    Raises:
        DeeprlError: no run there; a file that cannot be read, named with its row.
    """
    root = Path(directory)
    found = run_directories(root)
    if not found:
        raise DeeprlError(f"no runs in {root}: found no directory with config.json and evaluations.csv")
    return [_read_run(path, path.relative_to(root).as_posix()) for path in found]


def group(runs: Iterable[RunRecord]) -> dict[Cell, Pairs]:
    """Agents with at least one evaluation by cell: environments, then cells in alphabetical order, agents by seed."""
    pairs = [(run, agent) for run in runs for agent in run.agents if agent.evaluations]
    cells: dict[Cell, Pairs] = {}
    for cell, pair in zip(cells_of([(run.info, agent.member) for run, agent in pairs]), pairs, strict=True):
        cells.setdefault(cell, []).append(pair)
    ordered = sorted(cells, key=lambda cell: (cell.env, cell.name))
    return {cell: sorted(cells[cell], key=lambda pair: (pair[1].seed, pair[0].name)) for cell in ordered}


def _read_run(path: Path, name: str) -> RunRecord:
    info, status = read_about(path), read_status(path)
    finished = status.get("state") in COMPLETE
    try:
        members = [(int(m["member"]), int(m["seed"])) for m in info["members"]]
        tasks = [task_of(info, member).name for member, _ in members]
        repeat = recorded_unit(info).factor  # files count decisions
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DeeprlError(f"{path / 'config.json'}: bad config or members ({error!r})") from error
    try:
        frozen = {int(e["member"]): {**e, "step": e.get("step", 0) * repeat} for e in status.get("frozen", [])}
    except (KeyError, TypeError, ValueError) as error:
        raise DeeprlError(f"{path / 'status.json'}: bad list of frozen agents ({error!r})") from error
    evaluations = _read_evaluations(path / "evaluations.csv", [member for member, _ in members], finished, repeat)
    before = [read_column(path / "pretraining.csv", column) for column in ("return", "q")]
    agents = (
        AgentRecord(member, seed, task, evaluations[member], frozen.get(member), _pretraining(before, member))
        for (member, seed), task in zip(members, tasks, strict=True)
    )
    return RunRecord(name, info, status, tuple(agents), path)


def _pretraining(columns: Sequence[dict[int, dict[int, float]]], member: int) -> Pretraining | None:
    return Pretraining(*(column.get(member, {}) for column in columns)) if any(member in c for c in columns) else None


def _read_evaluations(path: Path, members: list[int], finished: bool, repeat: int) -> dict[int, tuple[Evaluation, ...]]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if not finished:
        text = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(text))
    if missing := [c for c in EPISODE_COLUMNS if c not in (reader.fieldnames or EPISODE_COLUMNS)]:
        raise DeeprlError(f"{path} lacks the column {', '.join(missing)}")
    # Keyed by episode: should a resumed run have written an evaluation again, the later rows count.
    episodes: dict[int, dict[int, dict[int, tuple[float, float]]]] = {member: {} for member in members}
    for row in reader:
        try:
            step, member, episode = (int(row[column]) for column in ("step", "member", "episode"))
            step *= repeat
            episodes[member].setdefault(step, {})[episode] = (float(row["return"]), float(row["wall_s"] or "nan"))
        except KeyError as error:
            raise DeeprlError(f"{path} row {reader.line_num}: member {error} is not in config.json") from error
        except (TypeError, ValueError) as error:
            raise DeeprlError(f"{path} row {reader.line_num} is broken: {error}") from error
    complete = max((len(e) for steps in episodes.values() for e in steps.values()), default=0)
    return {member: _evaluations(steps, complete, finished) for member, steps in episodes.items()}


def _evaluations(
    steps: dict[int, dict[int, tuple[float, float]]], complete: int, finished: bool
) -> tuple[Evaluation, ...]:
    order = sorted(steps)
    if order and not finished and len(steps[order[-1]]) < complete:
        order.pop()
    found = []
    for step in order:
        rows = [steps[step][episode] for episode in sorted(steps[step])]
        found.append(Evaluation(step, tuple(value for value, _ in rows), max(wall for _, wall in rows)))
    return tuple(found)
