"""What a dataset holds, as text for somebody who is about to learn from it: returns, coverage, problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from deeprl.core.process import torch_defaults
from deeprl.data.compare import numbered
from deeprl.data.datasets import Dataset
from deeprl.data.scores import normalized_score

_ROWS = 1 << 17  # rows looked at together
_HUGE = 1e4
_BINS, _WIDTH = 10, 40


class Coverage(NamedTuple):
    """Statistics of the columns of an array [N, D], each [D] float64."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """Which columns hold one number only, [D] bool."""
        return self.low == self.high


def coverage(array: np.ndarray) -> Coverage:
    """Statistics of an array [N, D], N > 0."""
    size = array.shape[1]
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    total, squares = np.zeros(size), np.zeros(size)
    middle = array[0].astype(np.float64)  # the squares are taken about some row: numbers far from 0 lose no digits
    for rows in _pieces(len(array)):
        part = array[rows].astype(np.float64) - middle
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
        total += part.sum(0)
        squares += (part**2).sum(0)
    mean = total / len(array)
    std = np.sqrt(np.maximum(squares / len(array) - mean**2, 0))
    return Coverage(mean + middle, std, low + middle, high + middle)


def duplicates(dataset: Dataset) -> int:
    """How many transitions have the same observation, action and reward as an earlier one (told by 64-bit hashes)."""
    arrays = [np.asarray(a).reshape(len(dataset), -1) for a in dataset.data[:3]]
    generator = np.random.default_rng(0)
    weights = [
        generator.integers(2**63, size=a.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1) for a in arrays
    ]
    hashes = np.zeros(len(dataset), np.uint64)
    for rows in _pieces(len(dataset)):
        for array, weight in zip(arrays, weights, strict=True):
            mixed = array[rows].view(np.uint32) * weight
            mixed ^= mixed >> np.uint64(29)
            hashes[rows] += (mixed * weight[::-1]).sum(1, dtype=np.uint64)
    hashes.sort()
    return int((hashes[1:] == hashes[:-1]).sum())


def broken_chains(dataset: Dataset) -> int:
    """Rows whose next_obs is not the observation of the following row of their episode."""
    obs, next_obs = dataset.data.obs.numpy(), dataset.data.next_obs.numpy()
    inside = np.ones(len(dataset), bool)
    inside[dataset.ends.numpy() - 1] = False
    broken = 0
    for rows in _pieces(len(dataset) - 1):
        after = slice(rows.start + 1, rows.stop + 1)
        broken += int(((next_obs[rows] != obs[after]).any(1) & inside[rows]).sum())
    return broken


def problems(dataset: Dataset) -> list[str]:
    """What may spoil learning from a dataset or evaluating what was learnt, a line each."""
    found = [*_corruption(dataset.about), *dataset.notes]
    if dataset.env_problem:
        found.append(f"the environment cannot be made here: {dataset.env_problem}")
    elif not dataset.env:
        found.append("no environment is named: policies cannot be evaluated")
    obs, action = coverage(dataset.data.obs.numpy()), coverage(dataset.data.action.numpy())
    for what, columns in (("observations", obs), ("actions", action)):
        if columns.constant.any():
            found.append(f"{what} that are constant: {numbered(np.flatnonzero(columns.constant))}")
    scale = np.maximum(np.abs(obs.low), np.abs(obs.high))
    if (huge := scale > _HUGE).any():
        found.append(f"observations beyond {_HUGE:,.0f}: {numbered(np.flatnonzero(huge))}, up to {scale.max():.3g}")
    reward = dataset.data.reward
    if bool((reward == reward[0]).all()):
        found.append(f"all rewards are {float(reward[0]):g}")
    if broken := broken_chains(dataset):
        found.append(
            f"rows whose next observation is not the observation of the following row of their episode: {broken:,}"
        )
    return found


@torch_defaults()
def describe(dataset: Dataset) -> str:
    """Several lines of text: sizes, returns and scores, lengths of episodes, coverage of each dimension, problems."""
    spec, data = dataset.spec, dataset.data
    lengths = np.diff(dataset.ends.numpy(), prepend=0)
    size = sum(array.nbytes for array in data)
    ends = int(data.terminated.sum()), int(data.truncated.sum())
    at_bounds = sum(int((np.abs(data.action[rows].numpy()) >= 1).sum()) for rows in _pieces(len(dataset)))
    incomplete = int((~dataset.complete).sum())
    stopped = f", {incomplete:,} of them where a recording stopped" if incomplete else ""
    of_whole = " of complete episodes" if 0 < incomplete < len(lengths) else ""
    found = problems(dataset)
    kwargs = f" with {dataset.env_kwargs}" if dataset.env_kwargs else ""
    wrappers = f", wrapped in {', '.join(w)}" if (w := dataset.wrappers) else ""
    lines = [
        f"{dataset.name}: {len(dataset):,} transitions in {len(lengths):,} episodes, {size / 2**20:,.1f} MiB,"
        f" digest {dataset.digest()}",
        f"environment: {dataset.env or 'not named'}{kwargs}{wrappers}; {spec.obs_dim} observations,"
        f" {spec.action_dim} actions in {_interval(spec.action_low, spec.action_high)}",
        *_origin(dataset.about),
        f"returns{of_whole}: {_spread(dataset.whole_returns.numpy())}{_score(dataset)}",
        *_histogram(dataset.whole_returns.numpy()),
        f"lengths: {_spread(lengths)}; {ends[0]:,} episodes terminated, {ends[1]:,} were cut{stopped}",
        f"rewards: {_spread(data.reward.numpy())}",
        f"actions at the bounds: {at_bounds / max(data.action.numel(), 1):.1%}; duplicate transitions:"
        f" {duplicates(dataset) / len(dataset):.1%}",
        f"{'':16}{'mean':>11}{'std':>11}{'min':>11}{'max':>11}",
        *_table("observation", coverage(data.obs.numpy())),
        *_table("action", coverage(data.action.numpy())),
        f"problems: {'' if found else 'none found'}".rstrip(),
        *(f"- {problem}" for problem in found),
    ]
    return "\n".join(lines)


def _origin(about: dict[str, Any]) -> list[str]:
    """The line that tells how a dataset was made, if its file does."""
    told = [str(about["recipe"])] if about.get("recipe") else []
    told += [f"{key} {_listed(about[key])}" for key in ("policies", "noise", "seed") if about.get(key, "") != ""]
    told += [f"algorithm {about['algorithm_name']}"] if about.get("algorithm_name") else []
    return [f"origin: {'; '.join(told)}"] if told else []


def _corruption(about: dict[str, Any]) -> list[str]:
    """The line that tells how a dataset was corrupted, if its file does."""
    if "corruption" not in about:
        return []
    said = about["corruption"] if isinstance(about["corruption"], dict) else {}
    keys = ("attack", "elements", "rate", "scale", "mode", "seed", "source")
    told = ", ".join(f"{key} {_listed(said[key])}" for key in keys if key in said)
    return [f"the dataset is corrupted: {told or 'how is not told'}"]


def _listed(value: Any) -> str:
    """A value, or the first twelve of a list of them."""
    if not isinstance(value, list):
        return str(value)
    return " + ".join(map(str, value[:12])) + (f" and {len(value) - 12} more" if len(value) > 12 else "")


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS))


def _spread(values: np.ndarray) -> str:
    mean, low, high = (_short(float(v)) for v in (values.mean(dtype=np.float64), values.min(), values.max()))
    return f"mean {mean}, min {low}, max {high}"


def _short(value: float) -> str:
    whole = value == round(value)
    return f"{value:,.0f}" if whole else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _interval(low: tuple[float, ...], high: tuple[float, ...]) -> str:
    return f"[{min(low):g}, {max(high):g}]"


def _score(dataset: Dataset) -> str:
    if not dataset.spec.score_range:
        return "; no reference scores"
    low, high = dataset.spec.score_range
    score = float(normalized_score(dataset.whole_returns, dataset.spec.score_range).mean())
    return f"; normalised mean {score:.1f} (0 is {_short(low)}, 100 is {_short(high)})"


def _histogram(returns: np.ndarray) -> list[str]:
    if returns.max() - returns.min() <= 1e-12 * np.abs(returns).max():  # too little for edges between the bars
        return []
    counts, edges = np.histogram(returns, _BINS)
    return [
        f"{_short(low):>12} to {_short(high):>10} {'#' * -(-int(count) * _WIDTH // int(counts.max())):{_WIDTH}}"
        f" {count:,}"
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
    ]


def _table(name: str, columns: Coverage) -> list[str]:
    return [
        f"{f'{name} {i}':16}" + "".join(f"{value:>11.4g}" for value in row) + ("  constant" if row[2] == row[3] else "")
        for i, row in enumerate(zip(*columns, strict=True))
    ]
