"""What can be done to a file: damage by chance, and content that a stranger made up.

Where content must not be trusted, the sizes and digests in a checkpoint's manifest are made to fit (`forge`, `reseal`):
a stranger can do that.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fault_runs import checkpoints

Change = Callable[[Path], object]
DEPTH = 2_000  # beyond what recursive functions of Python can follow


def overwrite(path: Path, data: bytes) -> None:
    """Other bytes in the same file, under all of its names."""
    with path.open("rb+") as file:
        file.truncate()
        file.write(data)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else max(path.stat().st_size + size, 0))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    overwrite(path, bytes(data))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def replace(path: Path, data: bytes) -> None:
    """Another file of that name; other names of the old one stay as they are."""
    path.unlink()
    path.write_bytes(data)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_directory(path: Path) -> None:
    remove(path)
    path.mkdir()


def make_file(path: Path) -> None:
    remove(path)
    path.touch()


def make_loop(path: Path) -> None:
    remove(path)
    path.symlink_to(path.name)


def make_pipe(path: Path) -> None:
    """A file that lets its reader wait for ever."""
    remove(path)
    os.mkfifo(path)


def noise(path: Path, seed: int) -> None:
    replace(path, random.Random(seed).randbytes(path.stat().st_size))


def file_damages(path: Path, draw: random.Random) -> Iterator[tuple[str, Change]]:
    """Ways to damage a file, for a copy of `path`."""
    size = path.stat().st_size
    for cut in sorted({0, 1, size // 2, size - 1}):
        yield f"{cut} of {size} bytes left", functools.partial(truncate, size=cut)
    bits = {0, 8 * size - 1, *(draw.randrange(8 * size) for _ in range(6))}
    for bit in sorted(bits):
        yield f"bit {bit} flipped", functools.partial(flip, bit=bit)
    yield "a byte more", functools.partial(append, data=b"\0")
    yield "random bytes", functools.partial(noise, seed=size)
    yield "missing", remove
    yield "a directory instead", make_directory
    yield "a link to itself", make_loop
    yield "a pipe instead", make_pipe


def json_damages(path: Path) -> Iterator[tuple[str, Change]]:
    """JSON files that are not what they should be."""
    for name, data in {
        "a list": b"[1, 2]", "a number": b"7", "null": b"null", "a string": b'"x"', "an empty object": b"{}",
        "nested 100,000 deep": b"[" * 100_000, "nested 100,000 deep in an object": b'{"format": ' * 100_000,
        "not UTF-8": b"\xff\xfe\x00{", "a long number": b'{"format": ' + b"9" * 5000 + b"}", "NUL bytes": bytes(300),
    }.items():  # fmt: skip
        yield name, functools.partial(replace, data=data)
    yield "half of it", functools.partial(truncate, size=path.stat().st_size // 2)
    yield "empty", functools.partial(truncate, size=0)
    yield "NUL bytes at its end", functools.partial(append, data=bytes(64))


# --- manifests ---


def find_seal(manifest: dict[str, Any]) -> tuple[str, Callable[[Any], str]] | None:
    """Which entry of a manifest is a digest of the rest, and how it is made; None where there is no such entry."""
    for name, value in manifest.items():
        rest = {k: v for k, v in manifest.items() if k != name}
        for options in ({}, {"sort_keys": True}, {"indent": 1}, {"indent": 1, "sort_keys": True}):
            dump: Callable[[Any], str] = functools.partial(_digest, options=options)
            if isinstance(value, str) and dump(rest) == value:
                return name, dump
    return None


def _digest(value: Any, options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, **options).encode()).hexdigest()


def reseal(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    """Change the manifest of a checkpoint, and its digest of itself where it has one."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    seal = find_seal(manifest)
    if seal is not None:
        manifest.pop(seal[0])
    manifest = change(manifest)
    if seal is not None and isinstance(manifest, dict):
        manifest[seal[0]] = seal[1](manifest)
    replace(path, json.dumps(manifest).encode())


def forge(file: Path, write: Callable[[Path], None]) -> None:
    """Give a file of a checkpoint other content, and the manifest the size and digest of that."""
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    file.unlink()
    write(file)
    fresh = hashlib.sha256(file.read_bytes()).hexdigest()

    def fitted(value: Any) -> Any:
        if isinstance(value, dict) and digest in value.values():
            return {k: {digest: fresh, size: file.stat().st_size}.get(v, v) for k, v in value.items()}
        return {k: fitted(v) for k, v in value.items()} if isinstance(value, dict) else value

    reseal(file.parent, fitted)


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every entry of nested dicts with the keys that lead to it."""
    for key, entry in value.items() if isinstance(value, dict) else ():
        yield (*path, key), entry
        yield from places(entry, (*path, key))


def changed(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """A copy of nested dicts with one entry changed; `...` deletes it."""
    if len(path) > 1:
        return value | {path[0]: changed(value[path[0]], path[1:], new)}
    return {k: v for k, v in (value | {path[0]: new}).items() if v is not ...}


def renamed(value: Any, old: str, new: str) -> Any:
    """A copy of nested values with another name, whether a key or an entry."""
    if isinstance(value, dict):
        return {(new if k == old else k): renamed(v, old, new) for k, v in value.items()}
    return new if value == old else value


# --- hostile content ---


class Hostile:
    """Unpickling an instance makes a directory."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


def sentinel(out: Path) -> Path:
    return out.parent / f"{out.name}.executed"


def hostile(how: str, file: str, out: Path) -> None:
    """A file of the newest checkpoint that runs code where it is unpickled without care."""
    payload = {"agents": Hostile(sentinel(out)), "run": {}}

    def write(path: Path) -> None:
        if how == "plain pickle":
            path.write_bytes(pickle.dumps(payload, protocol=2))
        else:
            torch.save(payload, path, _use_new_zipfile_serialization=how == "torch zip")

    forge(checkpoints(out)[-1] / file, write)


def content(change: Callable[[Any], Any], out: Path) -> None:
    """Other content in the state of the newest checkpoint."""
    file = checkpoints(out)[-1] / "state.pt"
    state = torch.load(file, weights_only=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * DEPTH)
    forge(file, functools.partial(torch.save, change(state)))
    sys.setrecursionlimit(limit)


def deep(state: Any) -> Any:
    for _ in range(DEPTH):
        state = [state]
    return state


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda state: state | {"agents": {k: change(v) for k, v in state["agents"].items()}}
