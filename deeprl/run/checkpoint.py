"""Checkpoints: a directory per checkpoint that is complete or not there, checked when read, safe to open.

`checkpoints/000020000/` holds `state.pt`, blocks of replay rows (`replay_rows_000000000.pt`, ...; see
`deeprl/replay/blocks.py`) and `manifest.json` (format, step, size and SHA-256 of every file, and of itself). It is
written under another name, flushed to disk and renamed. A block that an earlier checkpoint holds already is a hard link
to the same file, so that only new rows are written and every directory is whole by itself. Loading uses
`weights_only=True`: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeprl.errors import DeeprlError, first_line
from deeprl.replay.blocks import Block, History

FORMAT = 2
_BLOCK_BYTES = 2**28  # rows are read and written in pieces of this size
_MANY_BLOCKS = 256  # then all rows are written anew, into few blocks
_NAME = re.compile(r"([0-9]{9,})(?:\.([0-9]+))?")  # the step; a number where there was one of that step
_FILE = re.compile(r"[a-z_]+_[0-9]{9,}\.pt")
_LOADABLE = (bool, int, float, str, bytes, type(None))  # with `weights_only`: these, but not their subclasses


def save(directory: Path, step: int, content: dict[str, Any], keep: int | None = 2) -> Path:
    """Write checkpoint `step`; keep it and the `keep - 1` before it, delete all others; None deletes none but its own.

    content: nested dicts, lists and tuples of numbers, strings, tensors, arrays and histories.

    Raises OSError, with the checkpoints of before as they were, if it cannot be written, and TypeError for anything
    else in it, which could not be loaded.
    """
    directory.mkdir(exist_ok=True)
    for left in directory.glob(".*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    final = directory / f"{step:09d}"
    if final.exists():
        final = directory / f"{step:09d}.{1 + max(number for at, number, _ in _found(directory) if at == step)}"
    temporary = directory / f".{final.name}"
    writer = _Writer(temporary, final)
    try:
        temporary.mkdir()
        writer.write("state.pt", writer.savable(content))
        writer.write_manifest(step)
        _flush_directory(temporary)
        os.replace(temporary, final)
        _flush_directory(directory)
        _flush_directory(directory.parent)  # where this directory and the logs beside it are entered
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for history, blocks in writer.histories:
        history.blocks, history.stored = blocks, history.last
    _remove_others(directory, step, final, keep)
    return final


def steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a directory, oldest first."""
    return sorted({step for step, _, _ in _found(directory)})


def load_checkpoint(
    directory: Path, histories: bool = True, step: int | None = None
) -> tuple[int, dict[str, Any]] | None:
    """The newest good checkpoint, or that of `step`, as (step, content), or None where there is none.

    histories: whether the blocks of rows are checked as well, as they must be before they are read.

    A broken one is named in a warning and the one before it is used. Raises DeeprlError if all are broken, or if one
    was written by another version of deeprl, and PermissionError for one that may not be read.
    """
    if directory.exists() and not directory.is_dir():
        raise DeeprlError(f"{directory} is no directory")
    broken: set[Path] = set()
    while found := [f for f in _found(directory) if f[2] not in broken and step in (None, f[0])]:
        at, _, path = found[-1]
        try:
            return at, _read(path, at, histories)
        except (DeeprlError, PermissionError):  # the latter may be as good as new
            raise
        except Exception as error:  # damaged and hostile files raise about everything that there is
            broken.add(path)
            if os.path.lexists(path):  # otherwise it was deleted by the run that is writing here
                warnings.warn(f"checkpoint {path} is broken ({first_line(error)})", stacklevel=2)
    if any(map(os.path.lexists, broken)):
        what = f"all checkpoints in {directory} are broken; delete that directory to start from the beginning"
        raise DeeprlError(what if step is None else f"checkpoint {directory / f'{step:09d}'} is broken; delete it")
    return None


class _Writer:
    """The files of one checkpoint in the making. histories: each with its blocks, once they are in their place."""

    def __init__(self, temporary: Path, final: Path):
        self._temporary, self._final = temporary, final.absolute()  # blocks are found again from anywhere
        self._files: dict[str, dict[str, Any]] = {}
        self.histories: list[tuple[History, list[Block]]] = []

    def write(self, name: str, value: Any) -> tuple[int, str]:
        """Save a value to a new file. Returns its size and digest."""
        with (self._temporary / name).open("wb") as file:
            hashing: Any = _HashingFile(file)
            torch.save(value, hashing)
            _flush(file)
        hashing.raise_failure()
        return self._note(name, hashing.size, hashing.sha256.hexdigest())

    def write_manifest(self, step: int) -> None:
        manifest = {"format": FORMAT, "step": step, "files": self._files}
        with (self._temporary / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(manifest | {"check": _check(manifest)}, file, indent=1)
            _flush(file)

    def savable(self, value: Any, name: str = "") -> Any:
        """A value in the form that goes into state.pt; its histories go into files of their own."""
        if isinstance(value, dict):
            return {self.savable(k): self.savable(v, f"{name}_{k}" if name else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(self.savable(v, name) for v in value)
        if isinstance(value, History):
            blocks = self._store(value, name)
            self.histories.append((value, blocks))
            return {"history": [[b.path.name, b.first, b.last] for b in blocks], "span": [value.first, value.last]}
        return _plain(value)

    def _store(self, history: History, name: str) -> list[Block]:
        """Link the blocks that are there and write the rows that are in none."""
        old = [b for b in history.blocks if b.last > history.first]
        begin = max(history.first, history.stored)
        if len(old) >= _MANY_BLOCKS or not all(self._link(block) for block in old):
            old, begin = [], history.first
        blocks = [b._replace(path=self._final / b.path.name) for b in old]
        while begin < history.last:
            row_bytes = sum(v.nbytes for v in history.read(begin, begin + 1).values())
            end = min(history.last, begin + max(1, _BLOCK_BYTES // max(row_bytes, 1)))
            file = f"{name}_{begin:09d}.pt"
            while file in self._files:  # rows that were changed after they had been stored
                file = file.replace(".pt", "0.pt")
            size, digest = self.write(file, history.read(begin, end))
            blocks.append(Block(self._final / file, begin, end, size, digest))
            begin = end
        return blocks

    def _link(self, block: Block) -> bool:
        """Take a block over from an earlier checkpoint. Returns False if it is not there any more."""
        target = self._temporary / block.path.name
        try:
            os.link(block.path, target)
        except FileNotFoundError:
            return False
        except OSError:  # a file system without hard links
            shutil.copyfile(block.path, target)
            with target.open("rb+") as file:
                _flush(file)
        self._note(block.path.name, block.bytes, block.sha256)
        return True

    def _note(self, name: str, size: int, digest: str) -> tuple[int, str]:
        self._files[name] = {"bytes": size, "sha256": digest}
        return size, digest


def _plain(value: Any) -> Any:
    """Tensors that own just their data and plain Python: what `weights_only=True` will load."""
    if isinstance(value, torch.Tensor):
        own = value.detach().cpu()
        return own.clone() if own.nbytes < own.untyped_storage().nbytes() else own
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.asarray(value, order="C"))
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) not in _LOADABLE:
        raise TypeError(f"a checkpoint cannot hold {value!r} of type {type(value).__name__}")
    return value


class _HashingFile:
    """A file that adds up what is written to it. An error of the disk is kept: torch.save would hide which it was."""

    def __init__(self, file: Any):
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self._failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _read(path: Path, step: int, histories: bool) -> dict[str, Any]:
    manifest = json.loads(_regular(path / "manifest.json").read_text(encoding="utf-8"))
    if "check" in manifest and manifest.pop("check") != _check(manifest):
        raise ValueError("its manifest is damaged")
    written = manifest["format"]
    if type(written) is not int:
        raise ValueError(f"it has the format {written!r}")
    if written != FORMAT:
        age = "newer" if written > FORMAT else "older"
        raise DeeprlError(f"{path} has checkpoint format {written}, of a {age} deeprl; this one reads {FORMAT}")
    if manifest["step"] != step:
        raise ValueError(f"it is of step {manifest['step']}")
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, about in files.items():
        if name != "state.pt" and not _FILE.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a file in it")
        if histories or name == "state.pt":
            _verify(path / name, about)
    return dict(_restored(torch.load(path / "state.pt", weights_only=True, map_location="cpu"), path, files))


def _regular(file: Path) -> Path:
    """The same path. Raises ValueError where reading would not end, or would not begin."""
    if not file.is_file():
        raise ValueError(f"{file.name} is no file")
    return file


def _verify(file: Path, about: dict[str, Any]) -> None:
    if _regular(file).stat().st_size != about["bytes"] or _sha256(file) != about["sha256"]:
        raise ValueError(f"the checksum of {file.name} does not match")


def _restored(value: Any, path: Path, files: dict[str, Any]) -> Any:
    """Histories in place of their lists of blocks."""
    if isinstance(value, dict) and value.keys() == {"history", "span"}:
        history = History(_no_more_rows)
        history.first, history.last = value["span"]
        history.stored = history.last
        history.blocks = [
            Block(path.absolute() / n, a, b, files[n]["bytes"], files[n]["sha256"]) for n, a, b in value["history"]
        ]
        return history
    if isinstance(value, dict):
        return {k: _restored(v, path, files) for k, v in value.items()}
    return value


def _no_more_rows(first: int, last: int) -> dict[str, Any]:
    raise ValueError(f"rows {first} to {last} are in no block")


def _found(directory: Path) -> list[tuple[int, int, Path]]:
    """(step, number among those of this step, path) of every checkpoint, oldest first."""
    matches = [(match, p) for p in directory.glob("[0-9]*") if (match := _NAME.fullmatch(p.name))]
    return sorted((int(match[1]), int(match[2] or 0), p) for match, p in matches)


def _remove_others(directory: Path, step: int, newest: Path, keep: int | None) -> None:
    """Delete all but `newest` and the `keep - 1` before it; later ones were broken when the run went on."""
    earlier = {at: path for at, _, path in _found(directory) if at < step}  # of each step the last one
    kept = {newest, *[earlier[at] for at in sorted(earlier, reverse=True)[: (keep or 1) - 1]]}
    for at, _, path in _found(directory):
        if path not in kept and (at == step or keep is not None):
            leaving = directory / f".{path.name}.old"  # a kill in between leaves nothing that looks like a checkpoint
            os.replace(path, leaving)
            shutil.rmtree(leaving, ignore_errors=True)


def _check(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


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
