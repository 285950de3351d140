"""How critics see a dataset's rewards: the recipes of published code."""

from __future__ import annotations

from typing import Literal

import torch

from deeprl.data.datasets import Dataset
from deeprl.errors import DeeprlError

Rewards = Literal[
    "as-is",
    "return-range",
    "minus-one",
    "cql-antmaze",
    "calql-antmaze",
    "calql-adroit",
    "times-100",
    "standardize",
]

_FIXED = {"as-is": (1.0, 0.0), "minus-one": (1.0, -1.0), "cql-antmaze": (4.0, -2.0)}
_FIXED |= {"calql-antmaze": (10.0, -5.0), "calql-adroit": (10.0, 5.0), "times-100": (100.0, 0.0)}
_EQUAL = 1e-7  # of their size: numbers that are nearer to each other may differ by the rounding of float32 alone


def reward_recipe(dataset: Dataset, rewards: Rewards) -> tuple[float, float]:
    """Scale and shift of a dataset's rewards; the sources are in `OfflineConfig.rewards`.

    Raises DeeprlError where they are measured by rewards or returns that are all equal, or differ by rounding alone:
    by less than 1e-7 of the largest reward, or of the largest sum of an episode's absolute rewards.
    """
    if rewards in _FIXED:
        return _FIXED[rewards]
    reward = dataset.data.reward.to(torch.float64)
    if rewards == "return-range":
        returns, unit = dataset.whole_returns, 1000.0
        spread, size = float(returns.max() - returns.min()), float(_sums(dataset, reward.abs()).max())
    else:
        spread, size, unit = float(reward.std(correction=0)), float(reward.abs().max()), 1.0
    if spread <= _EQUAL * size:
        raise DeeprlError(f"{dataset.name}: rewards {rewards} needs some that differ, and these are all equal")
    scale = unit / spread
    return scale, -scale * float(reward.mean()) if rewards == "standardize" else 0.0


def _sums(dataset: Dataset, values: torch.Tensor) -> torch.Tensor:
    """Sums over each episode, [E], of values [N] of its rows."""
    lengths = dataset.ends.diff(prepend=dataset.ends.new_zeros(1))
    episode = torch.arange(len(lengths)).repeat_interleave(lengths)
    return torch.zeros(len(lengths), dtype=values.dtype).index_add(0, episode, values)
