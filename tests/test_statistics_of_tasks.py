"""Statistics over tasks and of two algorithms: by hand, by properties, and beside rliable 1.2.0 on published scores."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from deeprl.reporting.pairwise import Difference, holm, improvement, improvement_interval, verdict, welch
from deeprl.reporting.stats import (
    bootstrap_interval,
    efficiency_curve,
    iqm,
    optimality_gap,
    performance_profile,
    profile_band,
    task_median,
)

SIDE = arrays(np.float64, st.integers(2, 8), elements=st.floats(-1e3, 1e3, width=32))
LEVELS = [0.1, 0.3, 0.5, 0.7, 0.9]
# What rliable 1.2.0 (numpy 2.4.6) gives for `published`, at 500k steps: IQM, median, mean, optimality gap; the share
# above each of LEVELS; the IQM at 100k, 200k, 300k and 500k steps. `benchmarks/against_rliable.py` compares intervals.
RLIABLE = {
    "SAC": (
        (0.5506260000000001, 0.55301, 0.513378, 0.486622),
        (0.79, 0.63, 0.57, 0.42, 0.11),
        (0.145794, 0.313838, 0.43082399999999993, 0.5506260000000001),
    ),
    "SimBa": (
        (0.804782, 0.819465, 0.73055, 0.2694500000000001),
        (1.0, 0.92, 0.8, 0.74, 0.16),
        (0.44683200000000006, 0.6789399999999999, 0.752438, 0.804782),
    ),
}
RLIABLE_IMPROVEMENT = 0.841  # of SimBa over SAC


@pytest.fixture(scope="module")
def published():
    """[runs, tasks, steps] of SAC and SimBa on ten tasks of the DeepMind Control Suite, returns / 1,000.

    The table is that of SonyResearch/simba (Apache-2.0).
    """
    table = Path(__file__).parent.parent / "benchmarks" / "reference" / "simba_dmc.csv"
    found: dict[str, dict[str, dict[tuple[str, int], float]]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["algorithm"].partition(",")[0]
            found.setdefault(name, {}).setdefault(row["env"], {})[row["seed"], int(row["step"])] = float(row["return"])
    shape = 10, 10, 4  # in order of tasks, seeds and steps
    tables = {n: np.array([[v[k] for k in sorted(v)] for _, v in sorted(tasks.items())]) for n, tasks in found.items()}
    return {name: table.reshape(shape).swapaxes(0, 1) / 1000.0 for name, table in tables.items()}


@pytest.mark.parametrize("name", ["SAC", "SimBa"])
def test_point_estimates_equal_those_of_rliable(published, name):
    scores, (aggregates, profile, curve) = published[name], RLIABLE[name]
    final = scores[..., -1]
    ours = (iqm(final), task_median(final), final.mean(), optimality_gap(final))
    assert ours == pytest.approx(aggregates, abs=1e-12)
    assert performance_profile(final, LEVELS) == pytest.approx(profile, abs=1e-12)
    assert efficiency_curve(scores, replications=10)[0] == pytest.approx(curve, abs=1e-12)


def test_probability_of_improvement_equals_that_of_rliable(published):
    simba, sac = ([*published[name][..., -1].T] for name in ("SimBa", "SAC"))
    assert improvement(simba, sac) == pytest.approx(RLIABLE_IMPROVEMENT, abs=1e-12)
    assert improvement(sac, simba) == pytest.approx(1 - RLIABLE_IMPROVEMENT, abs=1e-12)


# --- over tasks ---


def test_median_of_tasks_is_that_of_their_means():
    # means over runs 2, 20, 50: their median is 20; the pooled median would be 10
    assert task_median([[1, 10, 50], [3, 30, 50]]) == 20.0
    assert task_median([[1, 10], [3, 30]]) == 11.0
    assert task_median([4.0, 1.0, 1.0]) == 2.0


def test_median_over_axes_reduces_runs_then_tasks():
    samples = np.array([[[1, 10, 50], [3, 30, 50]], [[0, 0, 9], [0, 2, 9]]])
    assert task_median(samples, axis=(1, 2)).tolist() == [20.0, 1.0]
    assert task_median(samples, axis=1).tolist() == [[2, 20, 50], [0, 1, 9]]


def test_optimality_gap_counts_nothing_beyond_the_target():
    # min(score, 1): 0.5, 1, 1, 0.25 -> mean 0.6875
    assert optimality_gap([[0.5, 7.0], [1.0, 0.25]]) == 1 - 0.6875
    assert optimality_gap([[0.5, 7.0], [1.0, 0.25]], axis=0).tolist() == [0.25, 0.375]
    assert optimality_gap([2.0, 6.0], target=4.0) == 1.0


def test_profile_counts_scores_strictly_above_a_threshold():
    assert performance_profile([[0.0, 0.5], [0.5, 1.0]], [-1, 0, 0.5, 1]).tolist() == [1.0, 0.75, 0.25, 0.0]


@given(arrays(np.float64, (4, 3), elements=st.floats(-2, 2, width=32)))
def test_profile_falls_and_lies_in_its_band(scores):
    profile, low, high = profile_band(scores, np.linspace(-2, 2, 9), replications=200)
    assert (np.diff(profile) <= 0).all()
    assert ((low <= profile + 1e-12) & (profile <= high + 1e-12)).all()


def test_profile_of_one_run_has_no_band():
    profile, low, high = profile_band([[0.2, 0.4]], [0.3])
    assert profile.tolist() == [0.5]
    assert np.isnan([low, high]).all()


def test_curve_is_the_statistic_of_each_step_and_its_last_band_that_of_the_aggregate(published):
    scores = published["SAC"]
    values, low, high = efficiency_curve(scores, replications=20_000)
    assert values == pytest.approx([iqm(scores[..., k]) for k in range(4)])
    expected = bootstrap_interval(scores[..., -1])
    assert (low[-1], high[-1]) == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))


def test_a_resampled_curve_is_made_of_whole_runs():
    # Run 0 is 0 then 1, run 1 is 1 then 0: in each resample of whole runs the means of both steps add up to 1.
    scores = np.array([[[0.0, 1.0]], [[1.0, 0.0]]])
    seen = []

    def sums(samples, axis):
        means = samples.mean(axis=axis)
        seen.append(means.sum(axis=-1))
        return means

    efficiency_curve(scores, sums, replications=100)
    assert all((total == 1.0).all() for total in seen)
    assert len(seen) == 2


def test_bad_curves_and_thresholds_raise_value_error():
    with pytest.raises(ValueError, match="dimensions"):
        efficiency_curve(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="NaN"):
        performance_profile([[1.0]], [np.nan])
    with pytest.raises(ValueError, match="replications"):
        profile_band([[1.0], [2.0]], [0.5], replications=0)
    with pytest.raises(ValueError, match="dimensions"):
        task_median(np.zeros((2, 2, 2)))


# --- two algorithms ---


def test_welch_is_hand_computed():
    # means 2 and 6, variances 1 and 4 of 3 runs each: error sqrt(5/3); degrees (5/3)^2 / ((1/9 + 16/9) / 2) = 50/17
    found = welch([1, 2, 3], [4, 6, 8])
    half = scipy.stats.t.ppf(0.975, 50 / 17) * math.sqrt(5 / 3)
    assert found.value == -4.0
    assert (found.low, found.high) == pytest.approx((-4 - half, -4 + half))


@given(SIDE, SIDE)
def test_welch_equals_scipy(x, y):
    if min(np.ptp(x), np.ptp(y)) < 1e-2:
        return
    found, expected = welch(x, y), scipy.stats.ttest_ind(x, y, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(), abs=1e-6)


@pytest.mark.parametrize(("x", "y"), [([1.0], [2.0, 3.0]), ([5.0, 5.0], [1.0, 1.0])])
def test_what_does_not_scatter_has_no_interval(x, y):
    found = welch(x, y)
    assert found.value == np.mean(x) - np.mean(y)
    assert np.isnan([found.low, found.high, found.p]).all()
    assert verdict(found, 1.0) == "not shown"


def test_welch_covers_the_true_difference_at_nominal_rate():
    # 2,000 draws of five runs each, unequal variances: standard error of the rate 0.005
    rng = np.random.default_rng(0)
    inside = 0
    for x, y in zip(rng.normal(1.0, 1.0, (2000, 5)), rng.normal(0.0, 5.0, (2000, 5)), strict=True):
        found = welch(x, y)
        inside += found.low <= 1.0 <= found.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.02)


def test_improvement_counts_ties_as_half_and_averages_tasks():
    # first task: 3 above 1 and 3, tie with 3: pairs (1,1) .5 (1,3) 0 (3,1) 1 (3,3) .5 -> 0.5; second task: all above
    assert improvement([[1, 3], [7]], [[1, 3], [5, 6]]) == 0.75


@given(SIDE, SIDE)
def test_improvement_is_the_mann_whitney_statistic_and_both_directions_add_up_to_one(x, y):
    u = scipy.stats.mannwhitneyu(x, y).statistic
    assert improvement([x], [y]) == pytest.approx(u / (len(x) * len(y)))
    assert improvement([x], [y]) + improvement([y], [x]) == pytest.approx(1.0)


@given(SIDE, SIDE, st.randoms())
@settings(max_examples=25)
def test_interval_of_improvement_contains_it_and_knows_no_order_of_runs(x, y, random):
    low, high = improvement_interval([x], [y], replications=500)
    assert low - 1e-12 <= improvement([x], [y]) <= high + 1e-12
    shuffled = list(x)
    random.shuffle(shuffled)
    assert improvement_interval([np.array(shuffled)], [y], replications=500) == (low, high)


def test_interval_of_improvement_of_two_runs_each_is_hand_computed():
    # x = 0, 2 against y = 1, 1: a resample is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4
    assert improvement_interval([[0, 2]], [[1, 1]]) == (0.0, 1.0)
    assert improvement_interval([[0, 2]], [[1, 1]], confidence=0.4) == (0.5, 0.5)
    assert np.isnan(improvement_interval([[0.0]], [[1.0, 2.0]])).all()


def test_other_tasks_on_both_sides_raise_value_error():
    with pytest.raises(ValueError, match="same tasks"):
        improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="same tasks"):
        improvement([], [])
    with pytest.raises(ValueError, match="replications"):
        improvement_interval([[1, 2]], [[1, 2]], replications=0)


def test_holm_is_hand_computed():
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, made to rise: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01]) == [0.01]
    # one that has no p value counts as a test of its own
    assert holm([0.01, math.nan]) == [0.02, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_wrong_verdict():
    # 10 tests of nothing, 2,000 times: at most 5 % with any verdict, where uncorrected it would be 40 %
    rng = np.random.default_rng(1)
    wrong = [min(holm(rng.uniform(size=10).tolist())) <= 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(wrong) < 0.07


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [
        (Difference(2.0, 1.0, 3.0, 0.01), 0.04, "better"),
        (Difference(-2.0, -3.0, -1.0, 0.01), 0.04, "worse"),
        (Difference(2.0, 1.0, 3.0, 0.01), 0.06, "not shown"),  # among several tests
        (Difference(2.0, -0.1, 4.1, 0.01), 0.04, "not shown"),  # the interval has 0 in it
    ],
)
def test_verdict_needs_interval_and_adjusted_p(difference, p, expected):
    assert verdict(difference, p) == expected
