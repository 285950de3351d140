"""Where commands may write: never onto what is another's.

What a command has written itself it may replace: a report an earlier report, a table of episodes an earlier one. Each
check raises DeeprlError, one line that begins with the path, before anything is computed or written.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError

# What a run has in its directory, or will have.
_OF_RUNS = {"config.json", "status.json", "metrics.csv", "evaluations.csv", "config.tmp", "status.tmp", "run.lock"}
_OF_RUNS |= {"pretraining.csv", "checkpoints", "snapshots", "tensorboard", "wandb", "wandb.json"}
_OF_REPORTS = {"index.html", "summary.csv", "evaluation_seeds.csv", "config.json", "report.json"}
_PICTURES = ("curve_*.png", "over_all_tasks_*.png")  # and these
_TITLE = b": deeprl report</title>"  # of the page of a report, in its first lines
_FILMS = (".gif", ".mp4")


def is_run(directory: Path) -> bool:
    """Whether a directory is that of a run, or of one that has just begun."""
    about = _json(directory / "config.json")
    return (directory / "run.lock").exists() or (isinstance(about, dict) and {"algorithm", "config"} <= about.keys())


def is_report(directory: Path) -> bool:
    """Whether a directory holds a report, maybe a part of one whose writing was interrupted.

    It has a page that says so, beside which there may be other files, or no file but those of a report.
    """
    page, about = directory / "index.html", directory / "config.json"
    if is_run(directory) or (about.exists() and not isinstance(_json(about), list)):
        return False
    if page.is_file():
        with page.open("rb") as file:
            return _TITLE in file.read(2_000)
    others = [path for path in directory.iterdir() if path.name not in _OF_REPORTS]
    return all(any(map(path.match, _PICTURES)) for path in others) and _told(
        directory / "summary.csv", ("algorithm", "env", "label")
    )


def check_report(directory: str | Path) -> None:
    """Raise DeeprlError unless a report may be written there: a directory that is new, empty, or an earlier report."""
    folder = Path(directory)
    _check_outside_runs(folder)
    if is_run(folder):
        raise DeeprlError(f"{directory}: the directory of a run; write the report to another --out")
    if folder.is_dir() and not is_report(folder) and any(folder.iterdir()):
        raise DeeprlError(f"{directory}: not empty and holds no report; write it to another --out")
    if folder.exists() and not folder.is_dir():
        raise DeeprlError(f"{directory}: a file; a report is a directory: choose another --out")


def begin_report(directory: Path) -> None:
    """Make the directory of a report, and remove the pictures of an earlier one, which may have other names.

    Raises DeeprlError as `check_report` does.
    """
    check_report(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for pattern in _PICTURES:
        for picture in directory.glob(pattern):
            picture.unlink()


def check_sweep(directory: str | Path) -> None:
    """Raise DeeprlError where the runs of a sweep, or its report, would lie in what is another's."""
    folder = Path(directory)
    _check_outside_runs(folder)
    if is_run(folder):
        raise DeeprlError(f"{directory}: the directory of a run; give the sweep another out")
    if folder.exists() and not folder.is_dir():
        raise DeeprlError(f"{directory}: a file; give the sweep another out")
    check_report(folder / "report")


def check_table(path: str | Path, columns: Sequence[str], older: Sequence[str] = ()) -> None:
    """Raise DeeprlError unless a CSV file of these columns may be written there: it is new, empty, or has them.

    older: the columns of earlier versions.
    """
    file = Path(path)
    _check_file(file)
    if file.exists() and not any(_told(file, known, alone=True) for known in (columns, older or columns)):
        raise DeeprlError(f"{path}: exists and is no table of {','.join(columns)}; write to another file")


def check_film(path: str | Path) -> None:
    """Raise DeeprlError unless a film may be written there: a file .gif or .mp4, which may be there."""
    if Path(path).suffix.lower() not in _FILMS:
        raise DeeprlError(f"{path}: films are {' or '.join(_FILMS)}")
    _check_file(Path(path))


def check_picture(path: str | Path) -> None:
    """Raise DeeprlError unless a picture may be written there: a file .png, which may be there."""
    if Path(path).suffix.lower() != ".png":
        raise DeeprlError(f"{path}: pictures are .png")
    _check_file(Path(path))


def check_dataset(path: str | Path) -> None:
    """Raise DeeprlError where a dataset file cannot be: it exists, or would lie in the directory of a run."""
    file = Path(path).expanduser()
    if file.exists():
        raise DeeprlError(f"{path}: exists; remove it first, or write to another file")
    _check_file(file)
    if run := next(filter(is_run, file.resolve().parents), None):
        raise DeeprlError(f"{path}: lies in the directory of the run {run}; write to another place")


def _check_file(path: Path) -> None:
    _check_outside_runs(path)
    if path.is_dir():
        raise DeeprlError(f"{path}: a directory; name a file")


def _check_outside_runs(path: Path) -> None:
    """Raise DeeprlError for what a run keeps in its directory, or will."""
    full = path.resolve()
    for parent in full.parents:
        if full.relative_to(parent).parts[0] in _OF_RUNS and is_run(parent):
            raise DeeprlError(f"{path}: belongs to the records of the run {parent}; write to another place")


def _told(file: Path, columns: Sequence[str], alone: bool = False) -> bool:
    """Whether a CSV file is not there, empty, or begins with these columns; alone: and has no others."""
    if not file.exists():
        return True
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            header = next(csv.reader(lines), [])
    except (UnicodeDecodeError, csv.Error):
        return False
    return not header or header[: None if alone else len(columns)] == list(columns)


def _json(file: Path) -> Any:
    """What a JSON file holds, None where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
