"""What a study has drawn, on disk: a folder for each batch of trials, which train together up to a rung.

`batches/NNNN/batch.json` names the trials, their rung, and those that were pruned when these went on; `scores.json` has
what came of them, once the batch is through; `batch.lock` is held by whoever works there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.config import RunConfig
from deeprl.errors import InUseError
from deeprl.run.gather import Seat, gather
from deeprl.run.lock import Lock
from deeprl.run.records import write_json
from deeprl.tuning.spaces import Point, Space
from deeprl.tuning.trials import Group, Score, Trial, groups


class TrialBatch(NamedTuple):
    """Trials that train together. rung: 0, or higher of trials that go on; pruned: those of which these were better."""

    folder: Path
    rung: int
    trials: tuple[Trial, ...]
    pruned: tuple[int, ...]

    @property
    def name(self) -> str:
        numbers = [trial.number for trial in self.trials]
        return f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {', '.join(map(str, numbers))}"

    def scores(self) -> dict[int, Score] | None:
        """What came of each trial; None of a batch that is not through."""
        file = self.folder / "scores.json"
        if not file.exists():
            return None
        return {int(k): Score(tuple(v)) for k, v in json.loads(file.read_text(encoding="utf-8")).items()}

    def finish(self, scores: Mapping[int, Score]) -> None:
        """Keep what came of it."""
        write_json(self.folder / "scores.json", {str(number): score.seeds for number, score in scores.items()})

    def take(self, held: contextlib.ExitStack) -> bool:
        """Whether it is ours to work at, until `held` is closed: nobody else is there, and it is not through."""
        lock = Lock(self.folder, "batch.lock")
        try:
            lock.acquire()
        except InUseError:
            return False
        held.callback(lock.release)
        return self.scores() is None


class Batches:
    """The batches in a directory of a study. base: settings of all trials; seeds: those of each."""

    def __init__(self, out: Path, algorithm: str, base: RunConfig, space: Space, seeds: Sequence[int]):
        self._out, self._algorithm, self._base, self._space, self._seeds = out, algorithm, base, space, seeds

    def all(self) -> list[TrialBatch]:
        """In the order in which they were drawn."""
        return [self._read(file) for file in sorted(self._out.glob("batches/*/batch.json"))]

    def add(self, points: Mapping[int, Point], rung: int = 0, pruned: Sequence[int] = ()) -> TrialBatch:
        """A new one of these trials. Not to be called by two processes at the same time."""
        folder = self._out / "batches" / f"{len(self.all()):04d}"
        folder.mkdir(parents=True, exist_ok=True)
        listed = [{"number": number, "point": dict(point)} for number, point in points.items()]
        write_json(folder / "batch.json", {"rung": rung, "trials": listed, "pruned": list(pruned)})
        return self._read(folder / "batch.json")

    def points(self) -> dict[int, Point]:
        """Of every trial."""
        files = sorted(self._out.glob("batches/*/batch.json"))
        return {trial["number"]: trial["point"] for file in files for trial in _content(file)["trials"]}

    def groups(self, batch: TrialBatch) -> list[Group]:
        """Its populations."""
        return groups(self._algorithm, self._base, batch.trials, self._seeds, batch.folder)

    def begin(self, batch: TrialBatch) -> list[Group]:
        """Its populations; those of trials that go on are gathered from where these stand, if that is not done yet."""
        here = self.groups(batch)
        new = [group for group in here if not (group.planned.directory / "config.json").exists()]
        if batch.rung and new:
            before = [g for b in self.all() if b.rung == batch.rung - 1 for g in self.groups(b)]
            of = {trial.number: group for group in before for trial in group.trials}
            for group in new:
                gather(_origins(group, of), group.planned.config)
        return here

    def _read(self, file: Path) -> TrialBatch:
        content = _content(file)
        trials = [Trial(t["number"], self._space.settings(t["point"], self._base.steps)) for t in content["trials"]]
        return TrialBatch(file.parent, content["rung"], tuple(trials), tuple(content["pruned"]))


def _origins(group: Group, of: Mapping[int, Group]) -> list[Seat]:
    """Where the agents of a group stand, in their order. of: the group that each trial was in before."""
    found: dict[int, Seat] = {}
    for trial in group.trials:
        before = of[trial.number]
        for member, there in zip(group.members[trial.number], before.members[trial.number], strict=True):
            found[member] = Seat(before.planned.directory, there)
    return [found[member] for member in sorted(found)]


def _content(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
