"""Where a dataset lies, and which one it is: what is found again after it has moved, and not taken for another.

A run keeps of each of its datasets the absolute path and the SHA-256 of its file (of a Minari dataset: of the files in
its folder). A path is how data are found; the digest is what they are.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeprl.data.files import SUFFIXES
from deeprl.data.minari import find_minari
from deeprl.errors import DeeprlError, first_line

Known = dict[str, dict[str, str]]  # how a dataset is named in the settings of a run -> its `path` and `sha256`


def names_file(source: str) -> bool:
    """Whether a dataset is named as a file, not as a Minari dataset."""
    path = Path(source).expanduser()
    return not path.is_dir() and (path.suffix in SUFFIXES or path.is_file() or path.suffix[1:].isalpha())


def place_of(source: str) -> Path:
    """The absolute path of a dataset's file, or of the folder of a Minari dataset. Raises DeeprlError if it is not."""
    if not names_file(source):
        return find_minari(source).absolute()
    path = Path(source).expanduser().absolute()
    if not path.is_file():
        raise DeeprlError(f"{source}: no such file")
    return path


def digest_of(place: Path) -> str:
    """SHA-256 of a dataset's file or files, as hex digits. Raises DeeprlError if they cannot be read."""
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    try:
        digests = [_sha256_of(f) for f in files]
    except OSError as error:
        raise DeeprlError(f"{place}: cannot be read ({first_line(error)})") from error
    if not place.is_dir():
        return digests[0]
    named = [f"{f.relative_to(place).as_posix()} {digest}\n" for f, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def _sha256_of(file: Path) -> str:
    state = file.stat()
    young = abs(time.time() - state.st_mtime) < 2.0  # it may change again and look the same
    return (_sha256.__wrapped__ if young else _sha256)(str(file), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=1024)
def _sha256(path: str, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Of a file in the state that these numbers stand for: a sweep asks many times for the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of_source(source: str) -> dict[str, str]:
    """What a run keeps of a dataset. Raises DeeprlError if it is not there."""
    place = place_of(source)
    return {"path": str(place), "sha256": digest_of(place)}


def find_again(source: str, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """Where to read a dataset of a run that may have begun elsewhere, and what is to be kept of it.

    known: what the run has kept. The dataset is looked for where its name leads from here, then where it was; the one
    that is what it was counts. Raises DeeprlError if it is in neither place.
    """
    if source not in known:
        return source, facts_of_source(source)
    before, there = known[source], list[tuple[str, dict[str, str]]]()
    for place in dict.fromkeys((source, str(before["path"]))):
        try:
            there.append((place, facts_of_source(place)))
        except DeeprlError as error:
            missing = error
            continue
        if there[-1][1]["sha256"] == before["sha256"]:
            return there[-1]
    if not there:
        raise DeeprlError(
            f"{source}: neither here nor at {before['path']}, where this run read it; where it lies now:"
            f" deeprl resume RUN --dataset PATH"
        ) from missing
    return there[0]


def same_datasets(there: Any, here: Any, seeds: int, known: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether datasets named otherwise are the same for every agent of a population, by what the run has kept."""
    lists = [[names] * seeds if isinstance(names, str) else list(names) for names in (there, here)]
    return all(
        before == now or (before in known and known[before]["sha256"] == digest_of(place_of(now)))
        for before, now in zip(*lists, strict=True)
    )
