"""What a run says of itself on disk, and where runs lie. Read without torch or NumPy, as `deeprl status` does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError, first_line

FORMAT = 1
FOLDERS = ("checkpoints", "snapshots", "tensorboard", "wandb", "report")  # of a run, in which there are no others
COMPLETE = ("finished", "diverged")  # states of a run that is not continued
RECORDS = {"evaluations.csv", "metrics.csv", "status.json"}


def read_about(run_dir: Path) -> dict[str, Any]:
    """`config.json` of a run directory. Raises DeeprlError where there is none or it is of something else."""
    file = run_dir / "config.json"
    about = read_object(file)
    if about is None:
        raise DeeprlError(f"{run_dir} is no run directory: it has no config.json")
    kinds = {"format": int, "algorithm": str, "config": dict}
    if any(type(about.get(name)) is not kind for name, kind in kinds.items()):
        raise DeeprlError(f"{file} is no record of a run")
    if not 1 <= about["format"] <= FORMAT:
        raise DeeprlError(f"{file} has format {about['format']}; this deeprl reads up to {FORMAT}: update it")
    return about


def read_status(run_dir: Path) -> dict[str, Any]:
    """`status.json` of a run directory, empty for a run that ended before its first. Raises DeeprlError if broken."""
    return read_object(run_dir / "status.json") or {}


def read_object(file: Path) -> dict[str, Any] | None:
    """What is in a JSON file, None where there is no file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DeeprlError(f"{file}: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise DeeprlError(f"{file} holds no JSON object")
    return found


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step: a reader sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def run_directories(root: Path) -> list[Path]:
    """The directories of runs at or below `root`, sorted; one that links lead to as well is named without them."""
    found: dict[str, Path] = {}
    seen = {str(parent) for parent in Path(os.path.realpath(root)).parents}  # links to these would lead out of it
    pending = [str(root)]
    while pending:
        for folder, below, files in os.walk(pending.pop(0)):
            place = os.path.realpath(folder)
            if place in seen:
                below.clear()
            elif "config.json" in files and RECORDS & set(files):
                found[place] = Path(folder)
                below[:] = [name for name in below if name not in FOLDERS]
            seen.add(place)
            paths = [os.path.join(folder, name) for name in below]
            pending += [path for path in paths if os.path.islink(path)]  # after all that lies here itself
    return sorted(found.values())
