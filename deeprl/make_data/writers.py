"""Recorded episodes into files: Minari datasets and D4RL's HDF5 layout. One episode is in memory at a time.

What is being made has another name until it is complete, and is removed if making it fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import h5py
import numpy as np

import deeprl
from deeprl.data.datasets import Dataset
from deeprl.data.files import COMPLETE, MARK
from deeprl.errors import DeeprlError
from deeprl.run.targets import check_dataset

_SUFFIXES = (".hdf5", ".h5")
_BLOCK_ROWS = 1024


class RecordedEpisode(NamedTuple):
    """An episode of T steps in the environment's own units.

    obs [T + 1, O] and reward [T] float32, action [T, A] of the type of its space. terminated: whether the task ended;
    if not, a time limit or the end of the recording cut it. complete: whether the environment ended it. seed: what its
    first reset was given.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    complete: bool
    seed: int


class Origin(NamedTuple):
    """What a dataset says of itself. about: plain JSON values; score_range: as in `EnvSpec`."""

    env: str
    env_kwargs: dict[str, Any]
    algorithm: str
    about: dict[str, Any]
    score_range: tuple[float, ...] = ()


def is_file(target: str) -> bool:
    """Whether a dataset of this name is a file; else it is a Minari id."""
    return Path(target).suffix in _SUFFIXES


def exists(target: str) -> bool:
    """Whether there is such a dataset. Raises DeeprlError where the name is neither a file nor an id."""
    return (Path(target).expanduser() if is_file(target) else _minari_path(target)).exists()


def check_target(target: str) -> None:
    """Raise DeeprlError where a dataset cannot be made: it exists, or its name is neither a file nor an id.

    Nor can a file in the directory of a run.
    """
    if is_file(target):
        check_dataset(target)
    elif exists(target):
        raise DeeprlError(f"{target}: exists; remove it first (`minari delete {target}`), or choose another name")


def write_dataset(target: str, env: gym.Env, episodes: Iterable[RecordedEpisode], origin: Origin) -> None:
    """Write episodes to a file of D4RL's layout (`.hdf5`, `.h5`) or to a Minari dataset of that id.

    env: an environment of the kind that was recorded; it gives the spaces. Raises DeeprlError as `check_target` does.
    """
    check_target(target)
    (write_file if is_file(target) else write_minari)(target, env, episodes, origin)


def write_file(target: str, env: gym.Env, episodes: Iterable[RecordedEpisode], origin: Origin) -> None:
    """Flat arrays `observations`, `next_observations` [N, O], `actions` [N, A], `rewards` [N] as in an episode,
    `terminals`, `timeouts` [N] bool, `metadata_episode_complete` [E] bool, and attributes `env`, `env_kwargs`,
    `action_low`, `action_high`, `about` (JSON but for `env`), and `deeprl`, the version of the library.
    """  # fmt: skip
    space: Any = env.action_space
    told = {"env_kwargs": origin.env_kwargs, "about": origin.about}
    told |= {"action_low": space.low.tolist(), "action_high": space.high.tolist()}
    with _new_file(Path(target).expanduser(), origin.env, told) as file:
        complete = []
        for episode in episodes:
            _append(file, episode)
            complete.append(episode.complete)
        file[COMPLETE] = np.array(complete, bool)


@contextlib.contextmanager
def _new_file(path: Path, env: str, told: Mapping[str, Any]) -> Iterator[h5py.File]:
    """An HDF5 file to fill, with its attributes: it has another name until it is complete, and is gone on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with h5py.File(part, "w") as file:
            yield file
            file.attrs[MARK] = deeprl.__version__
            file.attrs["env"] = env
            for name, value in told.items():
                file.attrs[name] = json.dumps(value)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _append(file: h5py.File, episode: RecordedEpisode) -> None:
    last = np.arange(len(episode.reward)) == len(episode.reward) - 1
    columns = {
        "observations": episode.obs[:-1],
        "actions": episode.action,
        "rewards": episode.reward,
        "next_observations": episode.obs[1:],
        "terminals": last & episode.terminated,
        "timeouts": last & (not episode.terminated),
    }
    for key, rows in columns.items():
        if key not in file:
            shape = rows.shape[1:]
            file.create_dataset(key, (0, *shape), rows.dtype, maxshape=(None, *shape), chunks=(_BLOCK_ROWS, *shape))
        array = file[key]
        array.resize(len(array) + len(rows), axis=0)
        array[-len(rows) :] = rows


def write_minari(target: str, env: gym.Env, episodes: Iterable[RecordedEpisode], origin: Origin) -> None:
    """A Minari dataset below the folder MINARI_DATASETS_PATH, with the reference scores where there are any."""
    import minari
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    path = _minari_path(target)
    namespace = target.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    part = path.with_name(f".{path.name}.part")  # hidden: Minari does not list it
    shutil.rmtree(part, ignore_errors=True)  # what a killed process left
    space: Any = env.observation_space
    spec = _env_spec(env, origin)
    metadata = {
        **{"dataset_id": target, "minari_version": minari.__version__, "algorithm_name": origin.algorithm},
        **{"author": {f"deeprl {deeprl.__version__}"}, "code_permalink": "", "description": _described(origin)},
        "eval_env_spec": spec.to_json(),
        **dict(zip(("ref_min_score", "ref_max_score"), origin.score_range, strict=False)),
    }
    try:
        (part / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            part / "data",
            observation_space=gym.spaces.Box(np.float32(space.low), np.float32(space.high), space.shape, np.float32),
            action_space=env.action_space,
            env_spec=spec,
        )
        storage.update_metadata(metadata)
        complete: list[dict[str, bool]] = []
        storage.update_episodes(_buffer(episode, complete) for episode in episodes)
        storage.update_episode_metadata(complete)
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _env_spec(env: gym.Env, origin: Origin) -> Any:
    """How Gymnasium makes the environment; only its name, arguments and wrappers if it has no importable constructor.

    Wrappers that `make_env` puts on again by itself are left out.
    """
    wrappers = origin.about.get("wrappers", ())
    if env.spec is not None and isinstance(env.spec.entry_point, str):
        layers = env.spec.additional_wrappers
        others = tuple(w for w in layers if w.entry_point in wrappers or not w.entry_point.startswith("deeprl."))
        return dataclasses.replace(env.spec, additional_wrappers=others)
    named = tuple(gym.envs.registration.WrapperSpec(wrapper.rpartition(":")[2], wrapper, None) for wrapper in wrappers)
    return gym.envs.registration.EnvSpec(origin.env, kwargs=origin.env_kwargs, additional_wrappers=named)


def _described(origin: Origin) -> str:
    return "; ".join(f"{k}: {json.dumps(v) if isinstance(v, dict | list) else v}" for k, v in origin.about.items())


def _buffer(episode: RecordedEpisode, complete: list[dict[str, bool]]) -> Any:
    """An episode as Minari takes it; whether it is complete goes to `complete`, the episodes' further metadata."""
    from minari.data_collector import EpisodeBuffer

    complete.append({"episode_complete": episode.complete})
    last = np.arange(len(episode.reward)) == len(episode.reward) - 1
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.obs,
        actions=episode.action,
        rewards=episode.reward,
        terminations=last & episode.terminated,
        truncations=last & (not episode.terminated),
    )


def _minari_path(target: str) -> Path:
    """Where a Minari dataset is. Raises DeeprlError unless the id has the form that Minari wants."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        parse_dataset_id(target)
    except (ValueError, TypeError) as error:
        raise DeeprlError(
            f"{target!r}: expected a file .hdf5 or .h5, or a Minari id such as hopper/medium-v0 (with its version)"
        ) from error
    return get_dataset_path(target)


# --- a dataset that is in memory ---


def check_file(path: str | Path) -> Path:
    """Where a new file may be written. Raises DeeprlError if there is one or its suffix is not that of HDF5.

    Nor may it lie in the directory of a run.
    """
    target = Path(path).expanduser()
    if target.suffix not in _SUFFIXES:
        raise DeeprlError(f"{path}: expected a file {' or '.join(_SUFFIXES)}")
    check_dataset(path)
    return target


def save_dataset(dataset: Dataset, path: str | Path, beside: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a dataset in D4RL's layout, from which `load_dataset` reads the same one. beside: further arrays by name.

    Arrays as in `write_file`, actions in the environment's units (float64 unless these are [-1, 1]), and
    `episode_returns` [E]; attributes as there, and `score_range`. The file has another name until it is complete.

    Raises DeeprlError as `check_file` does.
    """
    target, spec = check_file(path), dataset.spec
    told = {"env_kwargs": dataset.env_kwargs, "about": dataset.about, "score_range": spec.score_range}
    told |= {"action_low": spec.action_low, "action_high": spec.action_high}
    with _new_file(target, dataset.env, told) as file:
        for name, array in (_columns(dataset) | dict(beside or {})).items():
            file[name] = array
        file["episode_returns"] = dataset.returns.numpy()
        file[COMPLETE] = dataset.complete.numpy()


def _columns(dataset: Dataset) -> dict[str, np.ndarray]:
    obs, action, reward, terminated, truncated, next_obs = (array.numpy() for array in dataset.data)
    low, high = np.asarray(dataset.spec.action_low), np.asarray(dataset.spec.action_high)
    if (low != -1.0).any() or (high != 1.0).any():
        action = low + (action.astype(np.float64) + 1.0) / 2.0 * (high - low)
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    return dict(zip(names, (obs, action, reward, terminated, truncated, next_obs), strict=True))
