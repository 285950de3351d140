"""Records of a run: CSV always, TensorBoard if wanted. Rows beyond a resumed checkpoint are cut off."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class CsvLog:
    """A CSV file whose first column is `step`; its columns are those of the first row written."""

    def __init__(self, path: Path):
        self.path = path
        self._columns: list[str] | None = None
        if path.exists():
            with path.open(newline="") as file:
                self._columns = next(csv.reader(file), None)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; each is on disk when this returns to the extent that the operating system keeps its cache."""
        if not rows:
            return
        with self.path.open("a", newline="") as file:
            if self._columns is None:
                self._columns = list(rows[0])
                csv.writer(file, lineterminator="\n").writerow(self._columns)
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="raise", lineterminator="\n")
            writer.writerows(rows)

    def cut_after(self, step: int) -> None:
        """Drop rows of later steps, and a last line that was only half written."""
        if not self.path.exists():
            return
        lines = [li for li in self.path.read_text().splitlines(keepends=True) if li.endswith("\n")]
        kept = lines[:1] + [li for li in lines[1:] if int(li.partition(",")[0]) <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)
        if not kept:
            self._columns = None


class TensorBoardLog:
    """One TensorBoard sub-run per member of a population, made at its first value."""

    def __init__(self, directory: Path, names: Sequence[str], purge_step: int | None = None):
        self._directory, self._names, self._purge_step = directory, names, purge_step
        self._writers: list[Any] = []

    def write(self, step: int, member: int, values: Mapping[str, float]) -> None:
        if not self._writers:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writers = [
                SummaryWriter(str(self._directory / name), purge_step=self._purge_step) for name in self._names
            ]
        for name, value in values.items():
            self._writers[member].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
