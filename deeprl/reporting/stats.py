"""Statistics of training runs: means, medians, profiles, curves over tasks, with intervals. Numpy only, no torch.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (interquartile mean,
optimality gap, performance profiles, stratified bootstrap; point estimates are those of rliable 1.2.0); Colas et al.
2018, "How Many Random Seeds?" (t against bootstrap at few seeds). Two algorithms beside each other: `pairwise`.
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


def checked_scores(scores: ArrayLike, dims: tuple[int, ...] | None = None) -> Array:
    """Scores in float64. Raises ValueError where they are empty, not finite, or have another number of dimensions."""
    array = np.asarray(scores, dtype=np.float64)
    if dims is not None and array.ndim not in dims:
        raise ValueError(f"scores must have {' or '.join(map(str, dims))} dimensions, not {array.ndim}")
    if array.size == 0:
        raise ValueError("scores are empty")
    if not np.isfinite(array).all():
        raise ValueError("scores contain NaN or infinite values")
    return array


def check_confidence(confidence: float) -> None:
    """Raises ValueError unless it lies between 0 and 1."""
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
    array = checked_scores(scores)
    if axis is None:
        return float(iqm(array.ravel(), axis=0))
    axes = (axis,) if isinstance(axis, int) else axis
    array = np.moveaxis(array, axes, range(-len(axes), 0))
    array = np.sort(array.reshape(*array.shape[: -len(axes)], -1), axis=-1)
    n = array.shape[-1]
    cut = n // 4
    return np.asarray(array[..., cut : n - cut].mean(axis=-1))


@overload
def task_median(scores: ArrayLike, axis: None = None) -> float: ...
@overload
def task_median(scores: ArrayLike, axis: Axes) -> Array: ...
def task_median(scores: ArrayLike, axis: Axes | None = None) -> float | Array:
    """Median over tasks of the mean over runs (Agarwal et al.): half of the tasks do not count.

    Args:
        scores: any shape, finite.
        axis: the axis of runs, or (runs, tasks); None: scores are [runs] or [runs, tasks]. The median of one task is
            its mean.

    Returns:
        a float for `axis=None`, else a float64 array without these axes.

    Raises:
        ValueError: empty, NaN or infinite scores; other dimensions with `axis=None`.
    """
    if axis is None:
        array = checked_scores(scores, dims=(1, 2))
        return float(task_median(array, axis=tuple(range(array.ndim))))
    array = checked_scores(scores)
    axes = (axis,) if isinstance(axis, int) else axis
    means = np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim)).mean(axis=-len(axes))
    return np.asarray(np.median(means, axis=-1) if len(axes) > 1 else means)


@overload
def optimality_gap(scores: ArrayLike, axis: None = None, target: float = 1.0) -> float: ...
@overload
def optimality_gap(scores: ArrayLike, axis: Axes, target: float = 1.0) -> Array: ...
def optimality_gap(scores: ArrayLike, axis: Axes | None = None, target: float = 1.0) -> float | Array:
    """How far scores fall short of `target` on average, those beyond it counted as `target` (Agarwal et al.).

    Args:
        scores: any shape, finite; normalised, so that `target` is the same for all tasks.
        axis: the axis or axes to reduce; None reduces all of them together.

    Returns:
        a float for `axis=None`, else a float64 array without the reduced axes; 0 where all reach the target.

    Raises:
        ValueError: empty, NaN or infinite scores.
    """
    gap = target - np.minimum(checked_scores(scores), target).mean(axis=axis)
    return float(gap) if axis is None else np.asarray(gap)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """The share of all runs on all tasks whose score is above each threshold (Agarwal et al., run-score distribution).

    Args:
        scores: [runs] or [runs, tasks], finite, normalised.
        thresholds: [K], finite.

    Returns:
        float64 [K] in 0 .. 1, falling where thresholds rise.

    Raises:
        ValueError: empty, NaN or infinite values, wrong number of dimensions.
    """
    array, levels = checked_scores(scores, dims=(1, 2)), checked_scores(thresholds, dims=(1,))
    return _shares_above(array[None], levels)[0]


def profile_band(
    scores: ArrayLike, thresholds: ArrayLike, confidence: float = 0.95, replications: int = 2_000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """A `performance_profile` with its pointwise percentile band by stratified bootstrap, as `bootstrap_interval`.

    Returns (profile, low, high), float64 [K] each; low and high are NaN for one run.
    """
    array, levels = checked_scores(scores, dims=(1, 2)), checked_scores(thresholds, dims=(1,))
    array = np.sort(array, axis=0)
    low, high = _percentiles(array, lambda samples: _shares_above(samples, levels), confidence, replications, seed)
    return performance_profile(array, levels), low, high


def efficiency_curve(
    scores: ArrayLike,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    replications: int = 2_000,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """A statistic over runs and tasks at each of T steps (sample-efficiency curve, Agarwal et al.) with its band.

    A resample draws whole runs, so that the resampled curves hang together in time as the runs do; rliable draws anew
    at each step. The band is pointwise all the same: each step alone, not the curve as a whole.

    Args:
        scores: [runs, tasks, T], finite, normalised.
        statistic: as in `bootstrap_interval`; it gets samples [replications, runs, tasks, T] and `axis=(1, 2)`.

    Returns:
        (values, low, high), float64 [T] each; low and high are NaN for one run.

    Raises:
        ValueError: empty, NaN or infinite scores, wrong number of dimensions, bad confidence or replications.
    """
    array = checked_scores(scores, dims=(3,))
    low, high = _percentiles(array, lambda samples: statistic(samples, axis=(1, 2)), confidence, replications, seed)
    return np.asarray(statistic(array, axis=(0, 1))), low, high


def _shares_above(samples: Array, thresholds: Array) -> Array:
    """[R, runs(, tasks)] to [R, K]."""
    axes = tuple(range(1, samples.ndim))
    return np.stack([(samples > level).mean(axis=axes) for level in thresholds], axis=-1)


def _percentiles(
    array: Array, statistic: Callable[[Array], Any], confidence: float, replications: int, seed: int
) -> tuple[Array, Array]:
    """Percentile interval of a statistic of tables whose runs were drawn with replacement, for each task anew.

    array: [runs(, tasks(, ...))]; what follows the tasks goes with its run. statistic: [R, *array.shape] to [R, ...].
    """
    check_confidence(confidence)
    if replications < 1:
        raise ValueError(f"replications must be positive, not {replications}")
    if len(array) == 1:
        nothing = np.full(np.shape(statistic(array[None]))[1:], np.nan)
        return nothing, nothing
    rng = np.random.default_rng(seed)
    values = []
    chunk = max(1, CHUNK // array.size)
    for start in range(0, replications, chunk):
        count = min(chunk, replications - start)
        index = rng.integers(len(array), size=(count, *array.shape[:2]))
        index = index.reshape(*index.shape, *(1 for _ in array.shape[2:]))
        values.append(statistic(np.take_along_axis(array[None], index, axis=1)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(values), [tail, 1.0 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


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
    array = checked_scores(scores, dims=(1, 2))
    array = np.sort(array, axis=0)  # tasks are resampled independently: their run order carries nothing, so drop it
    axes = tuple(range(1, array.ndim + 1))
    low, high = _percentiles(array, lambda samples: statistic(samples, axis=axes), confidence, replications, seed)
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
    array = checked_scores(scores, dims=(2,))
    check_confidence(confidence)
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
    _, low, high = mean_band(checked_scores(scores, dims=(1,))[:, None], confidence)
    return float(low[0]), float(high[0])
