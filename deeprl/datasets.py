"""Datasets of transitions that others recorded: Minari datasets, D4RL's HDF5 files, `.npz` files of the same layout.

A dataset is read once, checked, and held as plain arrays (`Stored`), actions in [-1, 1] as everywhere in the library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from deeprl.replay import Stored
from deeprl.spec import EnvSpec


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
    ends [E] int64: the number of rows up to the end of each episode; the last one is N. A recording that stops without
    an end is an episode too.
    returns [E] float64: undiscounted, in the units of the environment, with the rewards of rows that were left out
    because their successor is not known.
    env: the environment that policies are evaluated in, "" if nothing names it; env_problem: why it cannot be made
    here, "" if it can. about: what its file says of it, plain JSON values.
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

    def __len__(self) -> int:
        return len(self.data.reward)

    def digest(self) -> str:
        """Eight hex digits that change with any number of the data."""
        raise NotImplementedError


def dataset_name(source: str) -> str:
    """What a dataset is called in reports: the stem of a file, or a Minari id."""
    return Path(source).stem if Path(source).suffix in (".npz", ".hdf5", ".h5") else source


def peek(source: str) -> Peek:
    """Sizes of a dataset, from its file's headers alone. Raises DeeprlError as `load_dataset` does."""
    raise NotImplementedError


def load_dataset(source: str, env: str = "", env_kwargs: dict[str, Any] | None = None, clip: bool = False) -> Dataset:
    """Read and check a dataset: a file `.hdf5`, `.h5` or `.npz` of D4RL's layout, or the id of a local Minari dataset.

    env: the environment, where the dataset does not name it or another is wanted. clip: actions beyond the bounds are
    clipped instead of refused.

    Raises DeeprlError that names file, key and row for what is wrong with it.
    """
    raise NotImplementedError
