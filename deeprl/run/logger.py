"""Records of a run: CSV always, TensorBoard, trackers if wanted. What lies beyond a resumed checkpoint is cut off."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import platform
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprl.config import RunConfig
from deeprl.envs.vector import Episode
from deeprl.errors import DeeprlError, shown
from deeprl.run.hparams import hparams_of, session_end, session_start
from deeprl.run.progress import show
from deeprl.run.trackers import Row, WandbLog

_EVENTS = "events.out.tfevents."  # names of TensorBoard's files begin so
_RECORD = struct.Struct("<QI")  # before each of their events: its size and a checksum
_TIME, _TIME_FIELD = struct.Struct("<xd"), 0x09  # an event begins with its time


class CsvLog:
    """A CSV file whose first column is `step`; its columns are those of the first row written."""

    def __init__(self, path: Path):
        self.path = path
        self._columns: list[str] | None = None

    def rows(self) -> Iterator[dict[str, str]]:
        """Those that are there, as text."""
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                yield from csv.DictReader(file)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; each is on disk when this returns to the extent that the operating system keeps its cache."""
        if not rows:
            return
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            if self._columns is None:
                file.seek(0)
                self._columns = next(csv.reader(file), None)
            if self._columns is None:
                self._columns = list(rows[0])
                csv.writer(file, lineterminator="\n").writerow(self._columns)
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="raise", lineterminator="\n")
            writer.writerows(rows)

    def mark(self) -> list[Any]:
        """Bring everything written so far to the disk. Returns its size and digest, to cut the file back to."""
        if not self.path.exists():
            return [0, ""]
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
            content = file.read()
        return [len(content), hashlib.sha256(content).hexdigest()]

    def cut_back(self, mark: Sequence[Any]) -> str:
        """Drop what was written after a mark. Returns a line if the file has been deleted since, else "".

        Raises DeeprlError if the part before the mark is not what it was.
        """
        size, digest = mark
        if size == 0 or not self.path.exists():
            self._columns = None
            self.path.unlink(missing_ok=True)
            return f"{shown(self.path)} was deleted: its rows so far are lost" if size else ""
        with self.path.open("rb+") as file:
            if hashlib.sha256(file.read(size)).hexdigest() != digest:
                raise DeeprlError(f"{shown(self.path)} is damaged; delete it to go on without its rows so far")
            file.truncate(size)
            os.fsync(file.fileno())
        return ""


def read_column(path: Path, column: str) -> dict[int, dict[int, float]]:
    """A column of a run's CSV file by member and step: the mean of its numbers, of all episodes of an evaluation.

    Left out are cells without a number, and a last line without its end, which is still being written. Empty for a file
    that is not there, or has no such column. Raises DeeprlError for a row that cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    found: dict[int, dict[int, list[float]]] = {}
    try:
        for row in reader:
            if row.get(column):
                found.setdefault(int(row["member"]), {}).setdefault(int(row["step"]), []).append(float(row[column]))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DeeprlError(f"{path} row {reader.line_num} is broken: {error}") from error
    return {m: {step: sum(x) / len(x) for step, x in sorted(steps.items())} for m, steps in found.items()}


class TensorBoardLog:
    """One TensorBoard sub-run per member of a population, made at its first value.

    Writes the files of events itself: the usual writers do so in a thread, which can neither tell when its values are
    on the disk nor raise where somebody would hear of it. purge_step: values of an earlier session from this step on
    are not to be shown any more. hparams: settings of each member, for the tab of that name.

    TensorBoard reads files in the order of their names, which begin with the time, and draws values over their times.
    Where the clock is behind that of an earlier session, both go on from where that session was.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        purge_step: int | None = None,
        hparams: Sequence[Mapping[str, bool | float | str]] = (),
    ):
        self._directory, self._names, self._purge_step, self._hparams = directory, names, purge_step, hparams
        self._now, self._last = 0.0, 0  # seconds, of the last event; the step of the last values
        self._writers: dict[int, Any] = {}
        self._files: list[Any] = []

    def write(self, step: int, member: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if member not in self._writers:
            self._open(member)
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._last = step
        self._add(member, step=step, summary=summary)
        self._writers[member].flush()

    def _open(self, member: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self._directory / self._names[member]
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(folder.glob(f"{_EVENTS}*"))
        self._now = max([self._now, *map(_last_time, files[-1:])])
        number = _number_after([file.name for file in files])
        self._files.append((folder / f"{_EVENTS}{number}.{platform.node()}.{os.getpid()}").open("wb"))
        self._writers[member] = RecordWriter(self._files[-1])
        self._add(member, file_version="brain.Event:2")
        if self._purge_step is not None:
            self._add(member, step=self._purge_step, session_log=SessionLog(status=SessionLog.START))
        if self._hparams:
            self._add(member, step=self._purge_step or 0, summary=session_start(self._hparams[member]))

    def _add(self, member: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._now = max(self._now, time.time())
        self._writers[member].write(Event(wall_time=self._now, **content).SerializeToString())

    def sync(self) -> None:
        """Have everything written so far on the disk itself."""
        for file in self._files:
            os.fsync(file.fileno())

    def close(self, success: bool | None = None) -> None:
        """success: how the run has ended, if it has."""
        for member, writer in self._writers.items():
            if self._hparams and success is not None:
                self._add(member, step=self._last, summary=session_end(success))
            writer.close()
        self._writers, self._files = {}, []


def _number_after(names: Sequence[str]) -> str:
    """Digits for the name of a new file of events: the time in ns, or, where a name is later, one more than in it."""
    now = f"{time.time_ns():019d}"
    newest = max((name.removeprefix(_EVENTS).partition(".")[0] for name in names), default="")
    if newest < now or not newest.isdecimal():
        return now
    return f"{int(newest) + 1:0{len(newest)}d}"


def _last_time(file: Path) -> float:
    """Seconds at the last whole event of a file; 0 where there is none."""
    content = file.read_bytes()
    place, last = 0, b""
    while len(content) - place >= _RECORD.size:
        size, _ = _RECORD.unpack_from(content, place)
        event = content[place + _RECORD.size : place + _RECORD.size + size]
        if len(event) == size:
            last = event
        place += _RECORD.size + size + 4  # a checksum
    return float(_TIME.unpack_from(last)[0]) if len(last) >= _TIME.size and last[0] == _TIME_FIELD else 0.0


class RunLogs:
    """`metrics.csv`, `evaluations.csv`, `pbt.csv` of a selection and, if wanted, `tensorboard/` of a run, and what a
    tracker gets.

    `pretraining.csv` is written when a run begins, if there is anything in it, and never again. state: how the run is,
    as `status.json` has it.
    """

    def __init__(self, directory: Path, algorithm: str, config: RunConfig):
        self._seeds, self.state = config.seeds, "running"
        self._metrics, self._evaluations = CsvLog(directory / "metrics.csv"), CsvLog(directory / "evaluations.csv")
        self._pretraining, self._selection = CsvLog(directory / "pretraining.csv"), CsvLog(directory / "pbt.csv")
        self._growing = self._metrics, self._evaluations, self._selection
        self._tensorboard: TensorBoardLog | None = None
        self._folder = directory / "tensorboard" if config.tensorboard else None
        self._hparams = [hparams_of(algorithm, config, i) for i in range(len(config.seeds))] if self._folder else []
        self._tracker = WandbLog(directory, algorithm, config) if config.track == "wandb" else None

    def begin(self, step: int | None, marks: Mapping[str, Sequence[Any]], anew: bool = False) -> list[str]:
        """Cut all back to the `marks` of a checkpoint of `step`, or to nothing. Returns lines on what is gone.

        anew: of `step` itself some rows are cut off as well.
        """
        news = [log.cut_back(marks.get(log.path.name, (0, ""))) for log in self._growing]
        if self._folder:
            names = [f"member_{i}_seed_{s}" for i, s in enumerate(self._seeds)]
            purge = 0 if step is None else step + (not anew)
            self._tensorboard = TensorBoardLog(self._folder, names, purge, self._hparams)
            for at, member, values in self._recorded(purge) if anew else ():  # of this step, void there now
                self._tensorboard.write(at, member, values)
        return news + (self._tracker.begin(self._recorded) if self._tracker else [])

    def _recorded(self, first: int) -> Iterator[Row]:
        """What the CSV files have of steps from `first` on, as trackers get it."""
        found: dict[tuple[int, int], dict[str, list[float]]] = {}
        for row in (row for log in (self._metrics, self._evaluations) for row in log.rows()):
            if (step := int(row["step"])) >= first:
                own = found.setdefault((step, int(row["member"])), {})
                for name in (name for name in row if name.startswith("train/") or name == "return"):
                    if not math.isnan(value := float(row[name] or "nan")):
                        own.setdefault("eval/return" if name == "return" else name, []).append(value)
        for (step, member), values in sorted(found.items()):
            yield step, member, {name: sum(x) / len(x) for name, x in values.items()}

    def pretraining(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what was before a run that begins, in place of what an attempt before has left."""
        self._pretraining.cut_back((0, ""))
        self._pretraining.write(rows)
        self._pretraining.mark()

    def marks(self) -> dict[str, list[Any]]:
        """Bring everything to the disk. Returns what `begin` needs to come back to this point."""
        if self._tensorboard:
            self._tensorboard.sync()
        return {log.path.name: log.mark() for log in self._growing}

    def metrics(
        self, step: int, wall_s: float, metrics: Mapping[str, list[float]], episodes: Sequence[Episode]
    ) -> None:
        """A row for each agent: its metrics ([S] each), and the mean return and length of its training episodes."""
        rows: list[dict[str, Any]] = []
        of = _by_member(episodes)
        for i, seed in enumerate(self._seeds):
            own = of[i]
            train = {
                "train/return": sum(e.ret for e in own) / len(own) if own else math.nan,
                "train/length": sum(e.length for e in own) / len(own) if own else math.nan,
            } | {f"train/{name}": value[i] for name, value in metrics.items()}
            rows.append({"step": step, "member": i, "seed": seed, "wall_s": round(wall_s, 2)} | train)
            self._send(step, i, {k: v for k, v in train.items() if not math.isnan(v)})
        self._metrics.write(rows)

    def evaluation(self, step: int, wall_s: float, episodes: Sequence[Episode]) -> None:
        """A row for each episode; the mean return of each agent for TensorBoard."""
        self._evaluations.write(
            [
                {"step": step, "member": e.member, "seed": self._seeds[e.member], "episode": e.env,
                 "return": e.ret, "length": e.length, "wall_s": round(wall_s, 2)}
                for e in episodes
            ]
        )  # fmt: skip
        for i, own in _by_member(episodes).items():
            self._send(step, i, {"eval/return": sum(e.ret for e in own) / len(own)})

    def _send(self, step: int, member: int, values: Mapping[str, float]) -> None:
        if self._tensorboard:
            self._tensorboard.write(step, member, values)
        if self._tracker:
            self._tracker.write(step, member, values)

    def commit(self) -> list[str]:
        """Have a tracker send what was written, of steps that are complete. Returns lines for the user."""
        return self._tracker.commit() if self._tracker else []

    def selection(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """What was chosen among the members (`run/selection.py`)."""
        self._selection.write(rows)

    def close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close({"finished": True, "failed": False, "diverged": False}.get(self.state))
        if self._tracker and (line := self._tracker.close(self.state == "failed")):
            show(line)


def _by_member(episodes: Sequence[Episode]) -> dict[int, list[Episode]]:
    """The episodes of each member that has some."""
    found: dict[int, list[Episode]] = defaultdict(list)
    for episode in episodes:
        found[episode.member].append(episode)
    return found
