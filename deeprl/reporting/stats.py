"""Statistics over training runs: interquartile mean, stratified bootstrap, Student t intervals. Numpy only, no torch.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (interquartile mean,
stratified bootstrap); Colas et al. 2018, "How Many Random Seeds?" (t against bootstrap at few seeds).
The samples are training runs (seeds). Episodes of one run are no independent replicates: average them first.

Every function computes in float64 and returns values in the unit of its scores (return, or normalised score). NaN and
infinite scores raise `ValueError`: dropping them would silently report the surviving runs only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
Axes = int | tuple[int, ...]

CHUNK = 5_000_000  # doubles resampled at a time: 40 MB


def _checked(scores: ArrayLike, dims: tuple[int, ...] | None = None) -> Array:
    array = np.asarray(scores, dtype=np.float64)
    if dims is not None and array.ndim not in dims:
        raise ValueError(f"scores must have {' or '.join(map(str, dims))} dimensions, not {array.ndim}")
    if array.size == 0:
        raise ValueError("scores are empty")
    if not np.isfinite(array).all():
        raise ValueError("scores contain NaN or infinite values")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


@overload
def iqm(scores: ArrayLike, axis: None = None) -> float: ...
@overload
def iqm(scores: ArrayLike, axis: Axes) -> Array: ...
def iqm(scores: ArrayLike, axis: Axes | None = None) -> float | Array:
    """Interquartile mean: what is left after cutting floor(0.25 n) scores from each end, averaged (Agarwal et al.).

    The rounding is that of `scipy.stats.trim_mean`: fewer than four scores are not trimmed at all.

    Args:
        scores: any shape, finite.
        axis: the axis or axes to reduce; None reduces all of them together (runs and tasks pooled, as in rliable).

    Returns:
        a float for `axis=None`, else a float64 array without the reduced axes.

    Raises:
        ValueError: empty, NaN or infinite scores.
    """
    array = _checked(scores)
    if axis is None:
        return float(iqm(array.ravel(), axis=0))
    axes = (axis,) if isinstance(axis, int) else axis
    array = np.moveaxis(array, axes, range(-len(axes), 0))
    array = np.sort(array.reshape(*array.shape[: -len(axes)], -1), axis=-1)
    n = array.shape[-1]
    cut = n // 4
    return np.asarray(array[..., cut : n - cut].mean(axis=-1))


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    replications: int = 50_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic by stratified bootstrap over runs (Agarwal et al. 2021, section 4).

    Runs are drawn with replacement, independently for every task; tasks stay fixed. The order of the runs of a task
    does not matter. The same seed gives the same interval: the generator is the function's own, never numpy's global.

    Args:
        scores: [runs] or [runs, tasks], finite.
        statistic: called as `statistic(samples, axis=axes)`; must reduce `axes`, the (runs,) or (runs, tasks) axes of
            samples [replications, runs(, tasks)], to one number per replication. `iqm`, `np.mean`, `np.median` do.
        confidence: coverage aimed at, between 0 and 1.
        replications: number of resamples (rliable: 50,000 for aggregates).
        seed: of the resampling.

    Returns:
        (low, high) as floats; (nan, nan) for one run, whose resamples are all equal and say nothing about its spread.
        Below about 10 runs on one task the interval is too narrow: prefer `mean_interval` (Colas et al. 2018).

    Raises:
        ValueError: empty, NaN or infinite scores, wrong number of dimensions, bad confidence or replications.
    """
    array = _checked(scores, dims=(1, 2))
    _check_confidence(confidence)
    if replications < 1:
        raise ValueError(f"replications must be positive, not {replications}")
    if len(array) == 1:
        return float("nan"), float("nan")
    array = np.sort(array, axis=0)  # tasks are resampled independently: their run order carries nothing, so drop it
    rng = np.random.default_rng(seed)
    axes = tuple(range(1, array.ndim + 1))
    values = np.empty(replications)
    chunk = max(1, CHUNK // array.size)
    for start in range(0, replications, chunk):
        count = min(chunk, replications - start)
        index = rng.integers(len(array), size=(count, *array.shape))
        samples = np.take_along_axis(array[None], index, axis=1)
        values[start : start + count] = statistic(samples, axis=axes)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def mean_band(scores: ArrayLike, confidence: float = 0.95) -> tuple[Array, Array, Array]:
    """Mean over seeds with its Student t interval, for every column: mean -/+ t(n-1) * std / sqrt(n), std with n-1.

    The interval is pointwise: each column alone, not the curve as a whole.

    Args:
        scores: [seeds, steps], finite.
        confidence: coverage aimed at, between 0 and 1.

    Returns:
        (mean, low, high), each float64 [steps]; low and high are NaN for one seed.

    Raises:
        ValueError: empty, NaN or infinite scores, wrong number of dimensions, bad confidence.
    """
    array = _checked(scores, dims=(2,))
    _check_confidence(confidence)
    n = len(array)
    mean = array.mean(axis=0)
    if n == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stdtrit(n - 1, (1.0 + confidence) / 2.0) * array.std(axis=0, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def mean_interval(scores: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student t interval of the mean over seeds; the choice below about 20 seeds (Colas et al. 2018).

    Args:
        scores: [seeds], finite, one number per training run.
        confidence: coverage aimed at, between 0 and 1.

    Returns:
        (low, high) as floats; (nan, nan) for one seed.

    Raises:
        ValueError: empty, NaN or infinite scores, wrong number of dimensions, bad confidence.
    """
    _, low, high = mean_band(_checked(scores, dims=(1,))[:, None], confidence)
    return float(low[0]), float(high[0])
