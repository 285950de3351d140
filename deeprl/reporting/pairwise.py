"""Two algorithms beside each other: difference of means, probability of improvement, verdicts over several tasks.

Welch's t test, the choice below about 20 seeds: Colas, Sigaud & Oudeyer 2018, "How Many Random Seeds?", section 5, and
2019, "A Hitchhiker's Guide to Statistical Comparisons of Reinforcement Learning Algorithms". Probability of
improvement: Agarwal et al. 2021, section 4.3 (as rliable 1.2.0). Several tests at once: Holm 1979, "A Simple
Sequentially Rejective Multiple Test Procedure". Numpy and scipy's special functions only, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from deeprl.reporting.stats import Array, check_confidence, checked_scores


class Difference(NamedTuple):
    """Mean of the one minus mean of the other, its interval, and the two-sided p of there being none.

    low, high and p are NaN where the runs do not tell how far they scatter: one run, or equal returns on both sides.
    """

    value: float
    low: float
    high: float
    p: float


def welch(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Difference:
    """mean(x) - mean(y) with Welch's interval: t with the degrees of freedom of Welch and Satterthwaite.

    Args:
        x: [runs] of the one algorithm, finite, one number per training run.
        y: [other runs] of the other.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        ValueError: empty, NaN or infinite scores, wrong number of dimensions, bad confidence.
    """
    one, other = (checked_scores(scores, dims=(1,)) for scores in (x, y))
    check_confidence(confidence)
    value = float(one.mean() - other.mean())
    if min(len(one), len(other)) < 2:
        return Difference(value, math.nan, math.nan, math.nan)
    parts = [side.var(ddof=1) / len(side) for side in (one, other)]
    variance = sum(parts)
    if variance == 0.0:
        return Difference(value, math.nan, math.nan, math.nan)
    # Shares instead of squares of the parts: those of tiny variances would be 0.
    shares = [part / variance for part in parts]
    freedom = 1.0 / sum(share**2 / (len(side) - 1) for share, side in zip(shares, (one, other), strict=True))
    error = math.sqrt(variance)
    half = float(stdtrit(freedom, (1.0 + confidence) / 2.0)) * error
    return Difference(value, value - half, value + half, 2.0 * float(stdtr(freedom, -abs(value) / error)))


def improvement(x: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> float:
    """The probability that a run of X scores above a run of Y on the same task, ties as half; mean over tasks.

    This is the Mann-Whitney U statistic of each task, divided by the number of pairs. 0.5: no difference.

    Args:
        x, y: the runs of each task, [runs] arrays which may differ in length, finite; the same tasks in both.

    Raises:
        ValueError: other numbers of tasks, none, or empty, NaN or infinite scores.
    """
    return float(np.mean([wins.mean() for wins in _wins(x, y)]))


def improvement_interval(
    x: Sequence[ArrayLike],
    y: Sequence[ArrayLike],
    confidence: float = 0.95,
    replications: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `improvement` by stratified bootstrap: runs of X and of Y are drawn anew for each task.

    Returns:
        (low, high); (nan, nan) where a side has one run on some task. Where all runs of one side are above all of the
        other, every resample says so too and the interval is a point: below about 10 runs go by `welch`.

    Raises:
        ValueError: as `improvement`; bad confidence or replications.
    """
    tables = _wins(x, y)
    check_confidence(confidence)
    if replications < 1:
        raise ValueError(f"replications must be positive, not {replications}")
    if min(size for wins in tables for size in wins.shape) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    values = np.zeros(replications)
    for wins in tables:
        # How often each run is drawn says all: the mean over pairs is a product of these counts.
        ours, theirs = (rng.multinomial(n, np.full(n, 1.0 / n), size=replications) for n in wins.shape)
        values += np.einsum("rj,rj->r", ours @ wins, theirs) / wins.size
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values / len(tables), [tail, 1.0 - tail])
    return float(low), float(high)


def _wins(x: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> list[Array]:
    """Of each task [runs of X, runs of Y]: 1 where X is above Y, half where they are equal. Runs are sorted."""
    if len(x) != len(y) or not x:
        raise ValueError(f"both sides must have the same tasks, not {len(x)} and {len(y)}")
    found = []
    for one, other in zip(x, y, strict=True):
        a, b = (np.sort(checked_scores(side, dims=(1,))) for side in (one, other))
        found.append((a[:, None] > b) + 0.5 * (a[:, None] == b))
    return found


def holm(p_values: Iterable[float]) -> list[float]:
    """p values adjusted for their number (Holm): where they are all that one looks at, those at most 0.05 hold together
    with a chance of 5 % that any of them is wrong. A NaN counts as a test that shows nothing: 1."""
    known = np.array([1.0 if math.isnan(p) else p for p in p_values])
    adjusted, least = np.ones(len(known)), 0.0
    for rank, k in enumerate(np.argsort(known, kind="stable")):
        least = max(least, min(1.0, float(known[k]) * (len(known) - rank)))
        adjusted[k] = least
    return adjusted.tolist()


def verdict(difference: Difference, adjusted_p: float, level: float = 0.05) -> str:
    """`better`, `worse` or `not shown`, of a difference in which more is better.

    It is shown where the interval leaves out 0 and the p value, adjusted for the number of tests (`holm`), is at most
    `level`.
    """
    if not (adjusted_p <= level and (difference.low > 0.0 or difference.high < 0.0)):
        return "not shown"
    return "better" if difference.value > 0.0 else "worse"
