"""Datasets of transitions that others recorded: Minari datasets, D4RL's HDF5 files, `.npz` files of the same layout.

A dataset is read once, checked, and held as plain arrays (`Stored`), actions in [-1, 1] as everywhere in the library.
It is read in pieces straight into these arrays: no second copy of it is ever made.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deeprl.core.process import torch_defaults
from deeprl.core.spec import EnvSpec
from deeprl.data import checks
from deeprl.data.compare import differences
from deeprl.data.d4rl import WRAPPERS
from deeprl.data.files import SUFFIXES, Recording, open_file
from deeprl.data.minari import open_minari
from deeprl.data.rows import episode_ends, no_rows, read_rows
from deeprl.data.scores import is_of_d4rl, score_range
from deeprl.data.source import names_file
from deeprl.envs.make import make_env
from deeprl.envs.spaces import env_spec
from deeprl.errors import DeeprlError
from deeprl.replay import Stored


class Peek(NamedTuple):
    """What can be told of a dataset without reading its transitions. rows: an upper bound of those it will have."""

    rows: int
    obs_dim: int
    action_dim: int

    @property
    def bytes(self) -> int:
        """Size of its arrays in memory: f32 observations twice, actions and rewards, two flags."""
        return self.rows * (4 * (2 * self.obs_dim + self.action_dim + 1) + 2)


@dataclass(frozen=True)
class Dataset:
    """N transitions, one episode after the other, and what is known of where they come from.

    data: obs [N, O], action [N, A] in [-1, 1], reward [N], next_obs [N, O] float32; terminated, truncated [N] bool.
    Exactly one of these is set in the last row of each episode, and none in any other row: `truncated` also where the
    recording stops without an end, and where the row of a time limit was left out. A terminated row's next_obs, which
    is never used, is obs itself if the file does not give it.
    ends [E] int64: the number of rows up to the end of each episode; the last one is N. A recording that stops without
    an end is an episode too, but not `complete` [E] bool (by default all are): it is neither among the best ones, nor
    does the range of returns count it.
    returns [E] float64: undiscounted, in the units of the environment, with the rewards of rows that were left out
    because their successor is not known.
    env: the environment that policies are evaluated in, "" if nothing names it; env_problem: why it cannot be made
    here, "" if it can. about: what its file says of it, plain JSON values; `wrappers` are those of env. notes: what was
    odd when it was read.
    """

    name: str
    data: Stored
    ends: Int[Tensor, " E"]
    returns: Float[Tensor, " E"]
    spec: EnvSpec
    env: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_problem: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    complete: Bool[Tensor, " E"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.complete is None:
            object.__setattr__(self, "complete", torch.ones(len(self.ends), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.data.reward)

    @property
    def wrappers(self) -> tuple[str, ...]:
        """What `env` is wrapped in, innermost first, as in `make_env`."""
        return tuple(self.about.get("wrappers", ()))

    @property
    def whole_returns(self) -> Float[Tensor, " C"]:
        """Those of the complete episodes, or of all where none is."""
        return self.returns[self.complete] if bool(self.complete.any()) else self.returns

    def digest(self) -> str:
        """Eight hex digits that change with any number of the data (not with what is known of its episodes)."""
        made = hashlib.blake2b(digest_size=4)
        for array in (*self.data, self.ends, self.returns):
            made.update(repr((tuple(array.shape), array.dtype)).encode())
            made.update(array.cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)
        return made.hexdigest()


def dataset_name(source: str) -> str:
    """What a dataset is called in reports: the stem of a file, the last part of a directory, or a Minari id."""
    path = Path(source).expanduser()
    if path.suffix in SUFFIXES:
        return path.stem
    if not path.is_dir():
        return source
    path = path.resolve()
    return path.parent.name if path.name == "data" else path.name


def peek(source: str) -> Peek:
    """Sizes of a dataset, from its file's headers alone. Raises DeeprlError as `load_dataset` does."""
    with _opened(source) as recording:
        checks.check_headers(recording)
        obs, action = (recording.columns[key].shape for key in ("observations", "actions"))
        return Peek(obs[0], obs[1], action[1])


@torch_defaults()
def load_dataset(
    source: str,
    env: str = "",
    env_kwargs: dict[str, Any] | None = None,
    clip: bool = False,
    outline: bool = False,
    wrappers: Sequence[str] = (),
) -> Dataset:
    """Read and check a dataset: a file `.hdf5`, `.h5` or `.npz` of D4RL's layout, or a local Minari dataset.

    A Minari dataset is named by its id or its directory. Files named as D4RL names them (`hopper_medium-v2.hdf5`,
    `door-human-v1.hdf5`) are taken to be of `Hopper-v4`, of `gymnasium_robotics:AdroitHandDoor-v1` and so on.
    env: the environment, where the dataset does not name it or another is wanted; it must be installed. wrappers: what
    it is wrapped in, as in `make_env`; policies of a dataset that was recorded with wrappers are not evaluated without.
    clip: actions beyond the bounds are clipped instead of refused. The bounds are those that the dataset gives, else
    the environment's, else [-1, 1]. outline: leave the transitions out; arrays are empty then.

    Without `next_observations` the successor of a row is the next row of its episode; the last row of an episode that
    did not terminate has none, and is left out. So is one whose `next_observations` repeat its observation, as some
    recorders write what they have not seen; where the world just stands still, a row of each episode is lost. Without
    `timeouts` episodes end where `next_observations` is not the observation of the next row; without both, at the
    environment's time limit.

    Raises DeeprlError that names file, key and row for what is wrong with it, and for an environment with other
    observations or actions.
    """
    with (
        contextlib.chdir("."),
        _opened(source) as opened,
        contextlib.ExitStack() as closing,
    ):  # environments may change it
        checks.check_headers(opened)
        notes = list(opened.notes)
        recording = _evaluated_in(opened, env, env_kwargs, tuple(wrappers), notes)
        made, problem = _made(recording, bool(env or wrappers), closing)
        spec, assumed = _spec(recording, dataset_name(source), made, problem)
        if outline:
            data, ends, returns, complete = no_rows(spec)
        else:
            with np.errstate(over="ignore"):  # numbers too large for float32 are reported by file, key and row
                episodes = episode_ends(recording, _limit(made), notes)
                data, ends, returns, complete = read_rows(recording, spec, episodes, clip, notes, assumed)
            if made is not None:
                notes += differences(data.obs.numpy(), made, _wrapped(recording.env, recording.wrappers))
        return Dataset(
            dataset_name(source), data, ends, returns, spec, recording.env, recording.env_kwargs, problem,
            recording.about, tuple(notes), complete,
        )  # fmt: skip


def _opened(source: str) -> AbstractContextManager[Recording]:
    return open_file(source) if names_file(source) else open_minari(source)


# --- the environment ---


def _evaluated_in(
    opened: Recording, env: str, env_kwargs: dict[str, Any] | None, wrappers: tuple[str, ...], notes: list[str]
) -> Recording:
    """The recording with the environment that policies are evaluated in: its own where no other is asked for."""
    problem = ""
    same = env in ("", opened.env)
    kwargs = env_kwargs if env_kwargs is not None else opened.env_kwargs if same else {}
    if WRAPPERS.issuperset(opened.wrappers):  # they belong to the environment; those that are named come around them
        own = opened.wrappers if same and env_kwargs is None else ()
        wrappers = (*(wrapper for wrapper in own if wrapper not in wrappers), *wrappers)
    elif opened.env and not (env or wrappers):
        wrappers = opened.wrappers
        problem = f"{opened.env} was wrapped in {', '.join(wrappers)}; name them with --wrappers"
    env = env or opened.env
    wrappers = wrappers if env else ()
    there, here = _wrapped(opened.env, opened.wrappers), _wrapped(env, wrappers)
    if opened.env and here != there:
        notes.append(f"the dataset is of {there}; policies are evaluated in {here}")
    about = {k: v for k, v in opened.about.items() if k != "wrappers"} | ({"wrappers": [*wrappers]} if wrappers else {})
    # Its references are those of its own task; D4RL's in a file of ours are those that `score_range` gives again.
    there_too = (env, kwargs, wrappers) == (opened.env, opened.env_kwargs, opened.wrappers)
    keep = there_too and not (opened.own and is_of_d4rl(opened.score_range))
    opened = replace(opened, score_range=opened.score_range if keep else ())
    return replace(opened, env=env, env_kwargs=kwargs, env_problem=problem, wrappers=wrappers, about=about)


def _wrapped(env: str, wrappers: Sequence[str]) -> str:
    return f"{env} wrapped in {', '.join(wrappers)}" if wrappers else env


def _made(recording: Recording, required: bool, closing: contextlib.ExitStack) -> tuple[gym.Env | None, str]:
    """The environment, which `closing` closes, or why there is none. Raises DeeprlError if it is required."""
    if not recording.env or recording.env_problem:
        return None, recording.env_problem
    try:
        made = make_env(recording.env, recording.env_kwargs, recording.wrappers)
        closing.callback(made.close)
        env_spec(made)
    except DeeprlError as error:
        if required:
            raise
        return None, str(error)
    return made, ""


def _limit(env: gym.Env | None) -> int | None:
    """Steps of an environment's time limit, if it is known."""
    return env.spec.max_episode_steps if env is not None and env.spec is not None else None


def _spec(recording: Recording, name: str, env: gym.Env | None, problem: str) -> tuple[EnvSpec, str]:
    """Shapes and bounds, and why [-1, 1] are taken for the bounds if nothing gives them.

    Raises DeeprlError if the environment is another one than was recorded, and for discrete actions.
    """
    obs_dim, action_dim = (recording.columns[key].shape[1] for key in ("observations", "actions"))
    scores = recording.score_range or score_range(recording.env, recording.env_kwargs, recording.wrappers, name)
    made = env_spec(env) if env is not None else None
    low = recording.low or (made.action_low if made else (-1.0,) * action_dim)
    high = recording.high or (made.action_high if made else (1.0,) * action_dim)
    if made:
        _check_same(recording, made, (obs_dim, action_dim), (low, high))
        return replace(made, score_range=scores), ""
    why = f"the environment cannot be made here ({problem})" if problem else "no environment is named"
    assumed = "" if recording.low else why
    if assumed:
        checks.check_continuous(recording)
    checks.check_bounds(recording.file, low, high, action_dim)
    return EnvSpec((obs_dim,), action_dim, low, high, score_range=scores), assumed


def _check_same(
    recording: Recording, made: EnvSpec, sizes: tuple[int, int], bounds: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    env = _wrapped(recording.env, recording.wrappers)
    if made.discrete and sizes[1] == 1:
        raise DeeprlError(f"{recording.file}: actions: {checks.DISCRETE.format(f'{env} has {made.actions} of them')}")
    theirs = "x".join(map(str, made.obs_shape)), f"{made.actions} discrete ones" if made.discrete else made.action_dim
    for key, size, other in zip(("observations", "actions"), sizes, theirs, strict=True):
        if str(size) != str(other):
            raise DeeprlError(
                f"{recording.file}: {key}: {size} numbers from row 0 on, but {env} has {other}: a dataset of another"
                f" environment"
            )
    checks.check_bounds(recording.file, *bounds, sizes[1])
    if not np.allclose(bounds, (made.action_low, made.action_high), rtol=1e-5):
        raise DeeprlError(
            f"{recording.file}: actions: bounds {bounds[0]} to {bounds[1]} from row 0 on, but those of {env} are"
            f" {made.action_low} to {made.action_high}: a dataset of another environment"
        )
