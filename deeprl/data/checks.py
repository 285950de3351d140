"""What must hold of a recording before anything is learnt from it. Checks raise DeeprlError with file, key and row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from deeprl.data.files import COMPLETE, KEYS, Column, Recording
from deeprl.errors import DeeprlError

_REQUIRED = KEYS[:4]
_VECTORS = ("observations", "actions", "next_observations")
DISCRETE = "discrete actions ({}); only continuous ones are read"
_FEW, _LITTLE = 0.01, 0.05  # share of the actions' numbers beyond their bounds, and how far, relative to their width
_SLACK = 1e-6  # of a bound: what rounding may have added to an action


def check_headers(recording: Recording) -> None:
    """All that can be told without reading: the keys are there, their types, ranks and lengths are right."""
    file, columns = recording.file, recording.columns
    for key in _REQUIRED:
        if key not in columns:
            raise DeeprlError(f"{file}: {key}: missing; the file has {', '.join(columns) or 'none of the keys'}")
    for key, column in columns.items():
        _check_type(file, key, column)
    rows = columns["observations"].shape[0]
    if rows == 0:
        raise DeeprlError(f"{file}: observations: no rows (row 0 is missing)")
    for key, column in columns.items():
        if column.shape[0] != rows:
            shorter = min(rows, column.shape[0])
            raise DeeprlError(
                f"{file}: {column.key}: {column.shape[0]:,} rows where observations has {rows:,}; the first row that"
                f" not both have is row {shorter}"
            )
        if key in _VECTORS and column.shape[1] == 0:
            raise DeeprlError(f"{file}: {column.key}: rows of no numbers, from row 0 on")
    if "next_observations" in columns and columns["next_observations"].shape != columns["observations"].shape:
        ours, theirs = columns["next_observations"].shape, columns["observations"].shape
        raise DeeprlError(f"{file}: next_observations: shape {ours}, but observations has {theirs}, from row 0 on")


def _check_type(file: str, key: str, column: Column) -> None:
    name, shape, dtype = column.key, column.shape, column.dtype
    if dtype.kind == "O":
        what = "words" if h5py.check_string_dtype(dtype) else "objects" if dtype.metadata else "pickled objects"
        raise DeeprlError(f"{file}: {name}: {what}, which are not read, from row 0 on; save plain numbers")
    if dtype.kind not in "fiub":
        raise DeeprlError(f"{file}: {name}: {dtype} is no type of numbers, from row 0 on")
    if key == "actions" and len(shape) == 1 and dtype.kind in "iub":
        raise DeeprlError(f"{file}: {name}: {DISCRETE.format(f'{dtype}, from row 0 on')}")
    rank = 2 if key in _VECTORS else 1
    if len(shape) != rank and not (rank == 1 and len(shape) == 2 and shape[1] == 1):
        expected = "[rows, numbers]" if rank == 2 else "[rows]"
        raise DeeprlError(f"{file}: {name}: shape {shape} from row 0 on; expected {expected}")


def finite(file: str, column: Column) -> Iterator[np.ndarray]:
    """The pieces of a column, as they are. Raises DeeprlError at the end if any number is not finite in float32."""
    first, count, row = -1, 0, 0
    for piece in column.pieces():
        bad = ~np.isfinite(piece.astype(np.float32, copy=False))
        if bad.any():
            first = row + int(np.argmax(bad.reshape(len(bad), -1).any(1))) if first < 0 else first
            count += int(bad.sum())
        row += len(piece)
        yield piece
    if count:
        what = "1 number is" if count == 1 else f"{count:,} numbers are"
        raise DeeprlError(f"{file}: {column.where(first)}: not finite; {what} NaN, infinite or too large for float32")


def flags(file: str, column: Column) -> np.ndarray:
    """A column of flags [N] bool. Raises DeeprlError for values other than 0 and 1."""
    held = np.empty(column.shape[0], bool)
    row = 0
    for piece in column.pieces():
        values = piece.reshape(-1)
        if (bad := (values != 0) & (values != 1)).any():
            first = int(np.argmax(bad))
            raise DeeprlError(f"{file}: {column.where(row + first)}: {values[first]} is neither 0 nor 1")
        held[row : row + len(values)] = values
        row += len(values)
    return held


def check_continuous(recording: Recording) -> None:
    """Raise DeeprlError where actions are integers and nothing says that they are continuous."""
    actions = recording.columns["actions"]
    if actions.dtype.kind in "iub":
        what = DISCRETE.format(f"{actions.dtype}, from row 0 on")
        raise DeeprlError(f"{recording.file}: {actions.key}: {what}; save continuous ones as floats")


def check_ends(recording: Recording, terminal: np.ndarray, timeout: np.ndarray) -> None:
    """Some episode ends. terminal, timeout: [N] bool."""
    if recording.lengths is None and not terminal.any() and not timeout.any():
        raise DeeprlError(
            f"{recording.file}: terminals, timeouts: no episode ends anywhere, from row 0 to row {len(terminal) - 1}"
        )


def given_returns(file: str, returns: np.ndarray, episodes: int) -> np.ndarray:
    """Returns of all episodes that a file gives, as float64. Raises DeeprlError if they are no such numbers."""
    if returns.shape != (episodes,) or returns.dtype.kind != "f" or not np.isfinite(returns).all():
        raise DeeprlError(
            f"{file}: episode_returns: expected one finite number for each of {episodes} episodes, from row 0 on"
        )
    return returns.astype(np.float64)


def given_complete(file: str, complete: np.ndarray, episodes: int) -> np.ndarray:
    """Which of all episodes are complete, as a file tells. Raises DeeprlError unless it is one flag for each."""
    if complete.shape != (episodes,) or complete.dtype.kind != "b":
        raise DeeprlError(f"{file}: {COMPLETE}: expected one flag for each of {episodes} episodes, from row 0 on")
    return complete


def check_bounds(file: str, low: Sequence[float], high: Sequence[float], size: int) -> None:
    """Bounds of actions that a file gives: as many as the actions have numbers, each finite, low below high."""
    if len(low) != size or len(high) != size:
        raise DeeprlError(
            f"{file}: actions: {size} numbers from row 0 on, but {len(low)} lower and {len(high)} upper bounds"
        )
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        if not (np.isfinite(a) and np.isfinite(b) and a < b):
            raise DeeprlError(f"{file}: actions: bounds {a} and {b} of number {i}, from row 0 on")


def scaled(
    file: str,
    column: Column,
    low: Sequence[float],
    high: Sequence[float],
    clip: bool,
    clipped: list[int],
    exempt: bool = False,
    assumed: str = "",
) -> Iterator[np.ndarray]:
    """Pieces of actions [n, A], rescaled from their bounds to [-1, 1], float32; unchanged if these are the bounds.

    Appends the number of actions beyond the bounds to `clipped`. Raises DeeprlError at the end if there are any and
    not `clip`. exempt: leave them as they are. assumed: why the bounds are not known, and [-1, 1] are taken.
    """
    below, above = np.asarray(low), np.asarray(high)
    slack = _SLACK * (above - below)
    plain = bool((below == -1).all() and (above == 1).all())
    first, most, worst, at, count, row = -1, 0.0, 0.0, 0, 0, 0
    for piece in finite(file, column):
        beyond = (piece < below - slack) | (piece > above + slack)
        if beyond.any():
            first = row + int(np.argmax(beyond.any(1))) if first < 0 else first
            count += int(beyond.sum())
            excess = np.where(beyond, np.maximum(below - piece, piece - above), 0.0)
            here = int(np.argmax(excess))
            if excess.flat[here] > most:
                most, worst, at = float(excess.flat[here]), float(piece.flat[here]), row + here // piece.shape[1]
        row += len(piece)
        inside = piece if exempt else np.clip(piece, below, above)
        yield (inside if plain else (inside - below) / (above - below) * 2 - 1).astype(np.float32, copy=False)
    clipped.append(count)
    if count and not clip and not exempt:
        bounds = f"[{below.min():g}, {above.max():g}]" + (f", which are taken as {assumed}" if assumed else "")
        few = count <= _FEW * row * len(below) and most <= _LITTLE * float((above - below).max())
        clips = "clip=True (--clip-actions) clips them"
        if assumed:
            names = "name the environment (--env), or scale the actions to [-1, 1]"
            clips = f"{names}; {clips}" if few else names
        raise DeeprlError(
            f"{file}: {column.where(first)}: beyond the bounds {bounds} (numbers beyond: {count:,}; the worst:"
            f" {worst:g} in row {at}); {clips}"
        )
