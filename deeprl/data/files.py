"""Files of recorded transitions, read in pieces: `.npz` and D4RL's HDF5. No array is ever held as a whole here.

A file holds flat arrays with one row per step, episodes one after the other: `observations`, `actions`, `rewards`,
`terminals`, and where there are any `timeouts` and `next_observations`; other keys are ignored. An HDF5 file that
`deeprl` wrote says so in its attribute `deeprl`, tells in `env`, `env_kwargs`, `action_low`, `action_high`,
`score_range` and `about` where it comes from, has `episode_returns` where they are not the sums of its rewards, and in
`metadata_episode_complete` which episodes were not cut by the end of the recording: D4RL's own readers, which go
through all arrays by row, pass over names with `metadata` in them. In files of others these names are as good as any.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.lib import format as npy

from deeprl.data.d4rl import recorded_in
from deeprl.errors import DeeprlError, first_line

SUFFIXES = (".npz", ".hdf5", ".h5")
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
_PIECE = 1 << 22  # bytes of a piece
OLD_MINARI = (
    "of Minari before 0.5, without the metadata.json that later ones have, which is not read; remove it and download"
    " it again (deeprl dataset download ID)"
)
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError)
COMPLETE = "metadata_episode_complete"  # [episodes] bool
MARK = "deeprl"  # the attribute of an HDF5 file that the library wrote, its version; the first ones had none
_FORMS = {"env_kwargs": dict, "about": dict, "action_low": list, "action_high": list, "score_range": list}
# Of `about`, what the library writes and goes by.
OWN_FACTS = ("recipe", "policies", "noise", "seed", "wrappers", "corruption")


class Column(NamedTuple):
    """One array of a recording. pieces: reads it, in order of its rows; a piece is only valid until the next one.

    place: what messages call a row, where that is not its number.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]
    place: Callable[[int], str] | None = None

    def where(self, row: int) -> str:
        """The array and a row of it, in words."""
        return self.place(row) if self.place else f"{self.key}, row {row}"


@dataclass(frozen=True)
class Recording:
    """An open file: its arrays under D4RL's names, and what it says of itself.

    wrappers: what its environment was wrapped in. lengths: rows of each episode where the file tells them apart, int64.
    low, high: bounds of the actions, empty where it does not tell. score_range: as in `EnvSpec`. returns: of each
    episode, where the file has them; the sums of its rewards otherwise. complete: which episodes ended, [E] bool, where
    the file tells. own: the library wrote it, and its next
    observations are the true ones. notes: what is odd about it.
    """

    file: str
    columns: dict[str, Column]
    env: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_problem: str = ""
    wrappers: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    score_range: tuple[float, ...] = ()
    returns: np.ndarray | None = None
    complete: np.ndarray | None = None
    lengths: np.ndarray | None = None
    own: bool = False
    notes: tuple[str, ...] = ()


@contextmanager
def open_file(source: str) -> Iterator[Recording]:
    """A file of flat arrays, open for reading. Raises DeeprlError for one that is missing or cannot be read."""
    path = Path(source).expanduser()
    if path.suffix not in SUFFIXES:
        raise DeeprlError(f"{source}: unknown kind of file {path.suffix!r}; known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DeeprlError(f"{source}: no such file")
    if path.stat().st_size == 0:
        raise DeeprlError(f"{source}: the file is empty")
    with ExitStack() as stack:
        if path.suffix == ".npz":
            archive = stack.enter_context(_opened(source, lambda: zipfile.ZipFile(path)))
            columns, said = _npz_columns(source, archive), {}
        else:
            file = stack.enter_context(_opened(source, lambda: h5py.File(path, "r")))
            columns, said = _hdf5_columns(source, file), _attributes(source, file)
        if "env" not in said:
            said["env"], said["env_kwargs"], said["wrappers"] = recorded_in(path.stem)
        yield Recording(source, columns, **said)


def cannot_read(file: str, error: BaseException, key: str = "") -> DeeprlError:
    """What to raise for a file, or one of its arrays, that breaks off or is of another format."""
    what = f"{file}: {key}" if key else file
    return DeeprlError(f"{what}: damaged, truncated or of another format ({first_line(error)})")


def _opened(source: str, opener: Callable[[], Any]) -> Any:
    try:
        return opener()
    except _DAMAGE as error:
        raise cannot_read(source, error) from error


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


# --- npz ---


def _npz_columns(source: str, archive: zipfile.ZipFile) -> dict[str, Column]:
    members = set(archive.namelist())
    return {key: _npz_column(source, archive, key) for key in KEYS if f"{key}.npy" in members}


def _npz_column(source: str, archive: zipfile.ZipFile, key: str) -> Column:
    try:
        with archive.open(f"{key}.npy") as stream:
            shape, fortran, dtype = _npy_header(stream)
            size, expected = archive.getinfo(f"{key}.npy").file_size, stream.tell() + _bytes(shape, dtype)
            if size != expected and dtype.kind != "O":
                raise EOFError(f"{size:,} bytes where its header promises {expected:,}")
    except _DAMAGE as error:
        raise cannot_read(source, error, key) from error

    def pieces() -> Iterator[np.ndarray]:
        try:
            with archive.open(f"{key}.npy") as stream:
                if fortran and len(shape) > 1:  # its rows lie scattered over the file: there is no other way
                    yield npy.read_array(stream, allow_pickle=False)
                else:
                    _npy_header(stream)
                    yield from _rows(stream, shape, dtype)
        except _DAMAGE as error:
            raise cannot_read(source, error, key) from error

    return Column(key, shape, dtype, pieces)


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version}")
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)


def _rows(stream: Any, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The rows that follow, always in the same piece of memory."""
    step = max(1, _PIECE // max(_bytes(shape[1:], dtype), 1))
    held = np.empty((min(step, shape[0]), *shape[1:]), dtype)
    for start in range(0, shape[0], step):
        piece = held[: min(step, shape[0] - start)]
        view = piece.reshape(-1).view(np.uint8).data
        while view:
            if not (got := stream.readinto(view)):
                raise EOFError(f"it ends before row {shape[0]}")
            view = view[got:]
        yield piece
    stream.read(1)  # at the end the archive's check sum is looked at


# --- HDF5 ---


def hdf5_column(source: str, file: h5py.Group, key: str) -> Column:
    """An array of an HDF5 file. Raises DeeprlError if it is a group."""
    try:
        array = file[key]
    except _DAMAGE as error:
        raise cannot_read(source, error, key) from error
    if not isinstance(array, h5py.Dataset):
        raise DeeprlError(f"{source}: {key}: a group, not an array")
    return Column(key, array.shape or (), array.dtype, lambda: hdf5_pieces(source, key, array))


def hdf5_pieces(source: str, key: str, array: h5py.Dataset, first: int = 0, last: int = 0) -> Iterator[np.ndarray]:
    """Rows [first, last) of an array, all by default, in pieces that begin where the file's own blocks begin."""
    last = last or len(array)
    block = array.chunks[0] if array.chunks else 1
    step = block * max(1, _PIECE // max(_bytes((block, *array.shape[1:]), array.dtype), 1))
    for start in range(first, last, step):
        try:
            piece = array[start : min(start + step, last)]
        except _DAMAGE as error:
            raise cannot_read(source, error, key) from error
        yield piece


def _hdf5_columns(source: str, file: h5py.File) -> dict[str, Column]:
    columns = {key: hdf5_column(source, file, key) for key in KEYS if key in file}
    if not columns and any(name.startswith("episode_") and name[8:].isdigit() for name in file):
        place = Path(source).expanduser().absolute().parent
        if not (place / "metadata.json").is_file():
            raise DeeprlError(f"{source}: the episodes of a Minari dataset {OLD_MINARI}")
        folder = place.parent if place.name == "data" else place
        raise DeeprlError(f"{source}: the episodes of a Minari dataset; name its folder, {folder}, or its id")
    return columns


def _is_own(file: h5py.File) -> bool:
    """Whether the library wrote a file: it is marked, or has all of what the library wrote before there was a mark."""
    if MARK in file.attrs:
        return True
    try:
        said = {name: json.loads(file.attrs[name]) for name in _FORMS if name != "score_range"}
    except (KeyError, OSError, TypeError, ValueError):
        return False
    return "env" in file.attrs and all(isinstance(value, _FORMS[name]) for name, value in said.items())


def _attributes(source: str, file: h5py.File) -> dict[str, Any]:
    """What a file of our own says of itself."""
    said: dict[str, Any] = {}
    if not _is_own(file):
        return said
    if isinstance(file.get("episode_returns"), h5py.Dataset):
        said["returns"] = file["episode_returns"][()]
    if isinstance(file.get(COMPLETE), h5py.Dataset):
        said["complete"] = file[COMPLETE][()]
    if "env" in file.attrs:
        said["env"] = str(file.attrs["env"])
    for name, kind in _FORMS.items():
        if name not in file.attrs:
            continue
        try:
            value = json.loads(file.attrs[name])
        except (TypeError, ValueError) as error:
            raise DeeprlError(f"{source}: attribute {name}: not JSON ({first_line(error)})") from error
        numbers = kind is dict or (isinstance(value, list) and all(type(v) in (int, float) for v in value))
        if not isinstance(value, kind) or not numbers:
            what = "an object" if kind is dict else "a list of numbers"
            raise DeeprlError(f"{source}: attribute {name}: expected {what}, not {str(value)[:40]}")
        if name == "score_range" and value and not (len(value) == 2 and -math.inf < value[0] < value[1] < math.inf):
            raise DeeprlError(f"{source}: attribute score_range: expected a lower and a higher return, not {value}")
        said[name.removeprefix("action_")] = tuple(map(float, value)) if kind is list else value
    said["own"] = True
    said["wrappers"] = tuple(wrappers := said.get("about", {}).get("wrappers", []))
    if not (isinstance(wrappers, list) and all(isinstance(w, str) for w in wrappers)):
        raise DeeprlError(f"{source}: attribute about: wrappers: expected a list of names, not {str(wrappers)[:40]}")
    return said
