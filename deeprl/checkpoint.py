"""Checkpoints: a directory per checkpoint that is complete or not there, checked when read, safe to open.

`checkpoints/000020000/` holds `state.pt` and `manifest.json` (format version, step, SHA-256 and size of it). It is
written under another name, flushed to disk and renamed. Loading uses `weights_only=True`: a checkpoint from a stranger
cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeprl.errors import DeeprlError

FORMAT = 1


def save(directory: Path, step: int, content: dict[str, Any], keep: int = 2) -> Path:
    """Write checkpoint `step`; keep it and the `keep - 1` before it, delete all others.

    content: nested dicts and lists of numbers, strings, tensors and arrays.
    """
    final = directory / f"{step:09d}"
    temporary = directory / f".{step:09d}.tmp"
    for left in (*directory.glob(".*.tmp"), *directory.glob(".*.old")):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    with (temporary / "state.pt").open("wb") as file:
        torch.save(_savable(content), file)
        _flush(file)
    size, digest = (temporary / "state.pt").stat().st_size, _sha256(temporary / "state.pt")
    with (temporary / "manifest.json").open("w") as manifest:
        json.dump({"format": FORMAT, "step": step, "bytes": size, "sha256": digest}, manifest)
        _flush(manifest)
    replaced = directory / f".{step:09d}.old"
    if final.exists():  # the same step again, such as the final state after a checkpoint at the last step
        os.replace(final, replaced)
    os.replace(temporary, final)
    _flush_directory(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    known = [s for s in steps(directory) if s <= step]  # later ones were broken: the run went on from before them
    for old in sorted({*steps(directory)} - {*known[-keep:]}):
        shutil.rmtree(directory / f"{old:09d}", ignore_errors=True)
    return final


def steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a directory, oldest first."""
    return sorted(int(p.name) for p in directory.glob("[0-9]*") if p.name.isdigit())


def load(directory: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest good checkpoint as (step, content), or None where there is none.

    A broken one is named in a warning and the one before it is used. Raises DeeprlError if all are broken, or if one
    was written by a newer version of deeprl.
    """
    found = steps(directory)
    for step in reversed(found):
        try:
            return step, _read(directory / f"{step:09d}")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
            warnings.warn(f"checkpoint {directory / f'{step:09d}'} is broken ({error})", stacklevel=2)
    if found:
        raise DeeprlError(f"all checkpoints in {directory} are broken")
    return None


def _read(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["format"] > FORMAT:
        raise DeeprlError(f"{path} has checkpoint format {manifest['format']}; this deeprl reads up to {FORMAT}")
    file = path / "state.pt"
    if file.stat().st_size != manifest["bytes"] or _sha256(file) != manifest["sha256"]:
        raise ValueError("its checksum does not match")
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler raises several unrelated types on hostile or damaged input
        raise ValueError(str(error).splitlines()[0]) from error


def _savable(value: Any) -> Any:
    """Tensors that own just their data and plain Python: what `weights_only=True` will load."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone() if value.numel() * value.element_size() < value.untyped_storage().nbytes() \
            else value.detach().cpu()  # fmt: skip
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.asarray(value, order="C"))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: _savable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_savable(v) for v in value]
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
