"""Minari datasets on this machine: an HDF5 file with a group for each episode, and a `metadata.json`.

An episode of T steps has T + 1 observations and T actions, rewards and flags: step t leads from observation t to the
next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from deeprl.data.files import OLD_MINARI, OWN_FACTS, Column, Recording, cannot_read, hdf5_column, hdf5_pieces
from deeprl.errors import DeeprlError, first_line, nearest

# D4RL's names: Minari's, and the first row of an episode's array that counts.
_NAMES = {
    "observations": ("observations", 0),
    "actions": ("actions", 0),
    "rewards": ("rewards", 0),
    "terminals": ("terminations", 0),
    "timeouts": ("truncations", 0),
    "next_observations": ("observations", 1),
}


def find_minari(source: str) -> Path:
    """The folder that holds a dataset's `metadata.json`: of a local id, or of a directory. Raises DeeprlError."""
    path = Path(source).expanduser()
    if path.is_dir():
        for place in (path, path / "data"):
            if (place / "metadata.json").is_file():
                return place
            if (place / "main_data.hdf5").is_file():
                raise DeeprlError(f"{source}: a dataset {OLD_MINARI}")
        raise DeeprlError(f"{source}: not a Minari dataset: there is no metadata.json in it, nor in its folder data")
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    place = root / source / "data"
    if (place / "metadata.json").is_file():
        return place
    if (place / "main_data.hdf5").is_file():
        raise DeeprlError(f"{source}: a dataset {OLD_MINARI}")
    known = [str(found.parent.parent.relative_to(root)) for found in root.glob("**/data/metadata.json")]
    hint = f" (to download it: deeprl dataset download {source})" if _is_id(source) else ""
    raise DeeprlError(
        f"{source}: neither a file (.npz, .hdf5, .h5) nor a Minari dataset on this machine{hint}"
        f"{nearest(source, known)}"
    )


def _is_id(source: str) -> bool:
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(source)
    except (ValueError, TypeError):  # TypeError: it has no version
        return False
    return True


def download(source: str) -> Path:
    """Download a dataset by its id, unless it is here. Returns its directory.

    Raises DeeprlError for what is no id, for one that the server does not have, where the network fails, and where the
    extra `download` is missing.
    """
    import minari

    if not _is_id(source):
        raise DeeprlError(f"{source}: expected the id of a Minari dataset with its version: D4RL/door/human-v2")
    try:
        minari.download_dataset(source)
    except ImportError as error:
        hint = "needs huggingface_hub; install it with: pip install 'deeprl[download]'"
        reason = hint if "huggingface_hub" in str(error) else f"cannot be downloaded ({first_line(error)})"
        raise DeeprlError(f"{source}: {reason}") from error
    except Exception as error:  # whatever the clients of its servers raise
        raise DeeprlError(f"{source}: cannot be downloaded ({first_line(error)})") from error
    return find_minari(source).parent


@contextmanager
def open_minari(source: str) -> Iterator[Recording]:
    """A local Minari dataset, open for reading. Raises DeeprlError for what is not one, or has another layout."""
    folder = find_minari(source)
    metadata = _metadata(source, folder)
    action = _box(source, metadata, "action_space")
    _box(source, metadata, "observation_space")
    bounded = action is not None and bool(np.isfinite(action.low).all() and np.isfinite(action.high).all())
    env, env_kwargs, wrappers = _env(source, metadata)
    path = folder / "main_data.hdf5"
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise cannot_read(str(path), error) from error
    with file:
        episodes = _episodes(source, file)
        lengths = np.array([_length(source, file[name]) for name in episodes], np.int64)
        columns = {key: _column(source, file, key, episodes, lengths) for key in _NAMES}
        yield Recording(
            source,
            columns,
            env,
            env_kwargs,
            wrappers=wrappers,
            low=tuple(action.low.tolist()) if action is not None and bounded else (),
            high=tuple(action.high.tolist()) if action is not None and bounded else (),
            about={k: v for k, v in metadata.items() if k not in ("observation_space", "action_space", *OWN_FACTS)},
            score_range=_score_range(metadata),
            lengths=lengths,
            complete=_complete(file, episodes, lengths),
            notes=_miscounted(metadata, int(lengths.sum())),
        )


def _metadata(source: str, folder: Path) -> dict[str, Any]:
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise cannot_read(str(path), error) from error
    if not isinstance(metadata, dict):
        raise DeeprlError(f"{path}: not a JSON object")
    if (kind := metadata.get("data_format", "hdf5")) != "hdf5":
        raise DeeprlError(f"{source}: data_format {kind!r}: only Minari's hdf5 is read")
    return metadata


def _box(source: str, metadata: dict[str, Any], key: str) -> spaces.Box | None:
    """A flat space of the metadata, None if they do not tell. Raises DeeprlError for any other space."""
    if key not in metadata:
        return None
    from minari.serialization import deserialize_space

    try:
        space = deserialize_space(metadata[key])
    except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError) as error:
        raise cannot_read(source, error, f"metadata.json, {key}") from error
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space
    hint = "; observations of several parts are not read, from row 0 on" if isinstance(space, spaces.Dict) else ""
    raise DeeprlError(f"{source}: {key}: {' '.join(str(space).split())}; supported are flat Box spaces{hint}")


def _miscounted(metadata: dict[str, Any], rows: int) -> tuple[str, ...]:
    told = metadata.get("total_steps", rows)
    return () if told == rows else (f"metadata.json counts {told} steps; the episodes have {rows:,}",)


def _score_range(metadata: dict[str, Any]) -> tuple[float, ...]:
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if isinstance(low, int | float) and isinstance(high, int | float) and high > low:
        return float(low), float(high)
    return ()


def _env(source: str, metadata: dict[str, Any]) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """The environment that policies are to be evaluated in, its arguments, and what it was wrapped in."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if text is None:
        return "", {}, ()
    try:
        said = json.loads(text)
        name, entry = said["id"], said.get("entry_point")
    except (TypeError, ValueError, KeyError) as error:
        raise cannot_read(source, error, "metadata.json, env_spec") from error
    package = str(entry or "gymnasium").partition(":")[0].partition(".")[0]
    known = package in ("gymnasium", "shimmy") or "/" in name or ":" in name
    kwargs = dict(said.get("kwargs") or {})
    if (limit := said.get("max_episode_steps")) is not None:
        kwargs["max_episode_steps"] = limit
    wrappers = [w.get("entry_point") or w.get("name", "?") for w in said.get("additional_wrappers") or []]
    return name if known else f"{package}:{name}", kwargs, tuple(wrappers)


def _episodes(source: str, file: h5py.File) -> list[str]:
    names = [name for name in file if name.startswith("episode_") and name[8:].isdigit()]
    if not names:
        raise DeeprlError(f"{source}: main_data.hdf5: no episodes (episode_0, row 0 is missing)")
    return sorted(names, key=lambda name: int(name[8:]))


def _length(source: str, group: h5py.Group) -> int:
    """Steps of an episode, whose arrays must all be there and have as many rows."""
    name = group.name.strip("/")
    rows = {}
    for key in ("observations", "actions", "rewards", "terminations", "truncations"):
        array = group.get(key)
        if array is None:
            raise DeeprlError(f"{source}: {name}/{key}: missing, from row 0 on")
        if not isinstance(array, h5py.Dataset):
            raise DeeprlError(f"{source}: {name}/{key}: a group, not an array, from row 0 on")
        rows[key] = len(array)
    steps = rows.pop("rewards")
    for key, count in rows.items():
        expected = steps + (key == "observations")
        if count != expected:
            raise DeeprlError(
                f"{source}: {name}/{key}: {count} rows, not {expected}; rewards has {steps}, and the first"
                f" row that not both have is row {min(count, expected)}"
            )
    return steps


def _complete(file: h5py.File, episodes: list[str], lengths: np.ndarray) -> np.ndarray | None:
    """Which episodes with any rows are complete, [E] bool, where each tells, as those that the library wrote do."""
    told = [file[name].attrs.get("episode_complete") for name, length in zip(episodes, lengths, strict=True) if length]
    return np.array(told, bool) if told and all(isinstance(value, bool | np.bool_) for value in told) else None


def _column(source: str, file: h5py.File, key: str, episodes: list[str], lengths: np.ndarray) -> Column:
    name, skipped = _NAMES[key]
    first = hdf5_column(source, file, f"{episodes[0]}/{name}")
    ends = np.cumsum(lengths)

    def pieces() -> Iterator[np.ndarray]:
        for episode, length in zip(episodes, lengths, strict=True):
            array = file[f"{episode}/{name}"]
            if array.shape[1:] != first.shape[1:] or array.dtype.kind not in "fiub":
                said = (
                    f"{array.dtype} {array.shape[1:]}, where that of {episodes[0]} is {first.dtype} {first.shape[1:]}"
                )
                raise DeeprlError(f"{source}: {episode}/{name}: a row is {said}, from row 0 on")
            if length:
                yield from hdf5_pieces(source, f"{episode}/{name}", array, skipped, skipped + int(length))

    def place(row: int) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        start = int(ends[number] - lengths[number])
        return f"{episodes[number]}/{name}, row {row - start + skipped}"

    return Column(name, (int(ends[-1]), *first.shape[1:]), first.dtype, partial(pieces), place)
