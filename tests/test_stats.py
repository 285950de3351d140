import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from deeprl.reporting import stats
from deeprl.reporting.stats import bootstrap_interval, iqm, mean_band, mean_interval

FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32)
RUNS = arrays(np.float64, st.integers(2, 12), elements=FLOATS)
TABLES = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=FLOATS)


def slack(scores):
    return 1e-9 * (1.0 + np.abs(scores).max())


def test_iqm_of_eight_scores_is_mean_of_middle_four():
    # floor(8/4) = 2 cut from each end: (3 + 4 + 5 + 6) / 4 = 4.5
    assert iqm([100, 3, 4, 1, -50, 6, 5, 7]) == 4.5


def test_iqm_of_five_scores_cuts_one_from_each_end():
    # floor(1.25) = 1: (2 + 3 + 7) / 3 = 4
    assert iqm([1, 2, 3, 7, 1000]) == 4.0


def test_iqm_of_three_scores_is_mean():
    # floor(0.75) = 0: (0 + 0 + 9) / 3 = 3
    assert iqm([0, 0, 9]) == 3.0


def test_iqm_of_table_pools_runs_and_tasks():
    # pooled 1, 2, 10, 20: cut one from each end: (2 + 10) / 2 = 6
    assert iqm([[1, 10], [2, 20]]) == 6.0


def test_iqm_over_axis_reduces_only_that_axis():
    # columns 0,1,2,9 and 0,10,20,90: (1 + 2) / 2 and (10 + 20) / 2
    assert iqm([[0, 0], [9, 10], [2, 20], [1, 90]], axis=0).tolist() == [1.5, 15.0]


def test_iqm_over_two_axes_pools_them():
    # [2, 2, 2], last two axes: 1, 2, 10, 20 -> 6 and 0, 0, 4, 4 -> (0 + 4) / 2 = 2
    assert iqm([[[1, 10], [2, 20]], [[4, 0], [0, 4]]], axis=(1, 2)).tolist() == [6.0, 2.0]


@given(arrays(np.float64, st.integers(1, 40), elements=FLOATS))
def test_iqm_equals_scipy_trim_mean(scores):
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25), abs=slack(scores))


@given(RUNS, st.randoms())
def test_iqm_of_permuted_scores_is_same(scores, random):
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert iqm(shuffled) == iqm(scores)


def test_mean_interval_of_three_scores_is_hand_computed():
    # mean 2, std 1, t(2 degrees, 0.975) = 4.302653: half width 4.302653 / sqrt(3) = 2.484138
    assert mean_interval([1, 2, 3]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_mean_interval_at_half_confidence_is_hand_computed():
    # t with one degree of freedom is Cauchy: quantile 0.75 is 1. std of 0, 2 is sqrt(2): half width sqrt(2)/sqrt(2) = 1
    assert mean_interval([0, 2], confidence=0.5) == pytest.approx((0.0, 2.0))


def test_mean_interval_of_one_seed_is_nan():
    assert np.isnan(mean_interval([5.0])).all()


@given(RUNS)
def test_mean_interval_contains_mean(scores):
    low, high = mean_interval(scores)
    assert low <= scores.mean() <= high


@given(RUNS)
def test_mean_interval_equals_scipy(scores):
    if np.ptp(scores) < 1e-3:
        return
    expected = scipy.stats.t.interval(0.95, len(scores) - 1, scores.mean(), scipy.stats.sem(scores))
    assert mean_interval(scores) == pytest.approx(expected, abs=slack(scores))


@given(RUNS, st.randoms())
def test_mean_interval_of_permuted_scores_is_same(scores, random):
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert mean_interval(shuffled) == pytest.approx(mean_interval(scores), abs=100 * slack(scores))


@given(FLOATS, st.integers(2, 10))
def test_equal_scores_give_zero_width(score, n):
    low, high = bootstrap_interval([score] * n, replications=20)
    assert low == high == pytest.approx(score)
    low, high = mean_interval([score] * n)
    assert high - low <= slack(np.array([score]))


def test_mean_interval_covers_true_mean_at_nominal_rate():
    # 2000 draws at true coverage 0.95: standard error sqrt(.95 * .05 / 2000) = 0.0049; +-4 of them
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(5, 2000))
    _, low, high = mean_band(samples)
    assert np.mean((low <= 3.0) & (high >= 3.0)) == pytest.approx(0.95, abs=0.02)


@given(TABLES)
def test_mean_band_columns_equal_mean_interval(table):
    mean, low, high = mean_band(table)
    assert mean == pytest.approx(table.mean(axis=0), abs=slack(table))
    for k in range(table.shape[1]):
        assert (low[k], high[k]) == pytest.approx(mean_interval(table[:, k]), abs=100 * slack(table))


def test_mean_band_of_one_seed_has_nan_bounds():
    mean, low, high = mean_band([[1.0, 2.0]])
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan([low, high]).all()


def test_bootstrap_interval_of_two_scores_is_whole_range():
    # resampled means of {0, 1} are 0, 0.5, 1 with probability 1/4, 1/2, 1/4: both 2.5 % tails end at the extremes
    assert bootstrap_interval([0, 1], statistic=np.mean) == (0.0, 1.0)
    # at 40 % confidence the tails are 30 %, inside the middle atom
    assert bootstrap_interval([0, 1], statistic=np.mean, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_interval_is_normal_theory_at_many_runs():
    # 400 standard normals: half width of the mean about 1.96 / 20 = 0.098
    scores = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(scores, statistic=np.mean, replications=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * scores.std() / 20, rel=0.06)
    assert (high + low) / 2 == pytest.approx(scores.mean(), abs=0.01)


def test_bootstrap_interval_covers_true_mean_almost_at_nominal_rate():
    # at n = 20 the percentile interval lacks the factor t/z * sqrt(n/(n-1)) = 2.093/1.96 * 1.026: about 0.93 expected
    rng = np.random.default_rng(2)
    hits = 0
    for k in range(400):
        low, high = bootstrap_interval(rng.normal(size=20), statistic=np.mean, replications=500, seed=k)
        hits += low <= 0.0 <= high
    assert 0.89 <= hits / 400 <= 0.97


def test_bootstrap_interval_resamples_runs_independently_per_task():
    # if whole rows were drawn, (0, 0) and (1, -1) would always sum to 0. Drawn per task, the first task is (1, 1) and
    # the second (0, 0) with probability 1/4 * 1/4 = 6.25 % > 2.5 %: mean (1 + 1 + 0 + 0) / 4 = 0.5; likewise -0.5
    assert bootstrap_interval([[0, 0], [1, -1]], statistic=np.mean) == (-0.5, 0.5)


def test_bootstrap_interval_never_mixes_tasks():
    # tasks are constant (0 and 100): every resample keeps one half of each, so nothing varies
    assert bootstrap_interval([[0, 100], [0, 100], [0, 100]], statistic=np.mean) == (50.0, 50.0)


@settings(deadline=None)
@given(TABLES)
def test_bootstrap_interval_contains_statistic(table):
    for scores in (table, table[:, 0]):
        for statistic in (iqm, np.mean):
            low, high = bootstrap_interval(scores, statistic=statistic, replications=1000)
            assert low - slack(scores) <= statistic(scores) <= high + slack(scores)


@given(TABLES, st.randoms())
def test_bootstrap_interval_of_permuted_runs_is_same(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    assert bootstrap_interval(table[order], replications=50) == bootstrap_interval(table, replications=50)


def test_bootstrap_interval_depends_on_its_seed_only():
    scores = np.random.default_rng(3).normal(size=10)
    np.random.seed(0)
    first = bootstrap_interval(scores, replications=200, seed=1)
    np.random.seed(1)
    assert bootstrap_interval(scores, replications=200, seed=1) == first
    assert bootstrap_interval(scores, replications=200, seed=2) != first


def test_bootstrap_interval_in_chunks_keeps_nominal_result(monkeypatch):
    monkeypatch.setattr(stats, "CHUNK", 7)
    # 3 replications fit in a chunk of 7 // 2; 1000 is no multiple of 3
    assert bootstrap_interval([0, 1], statistic=np.mean, replications=1000) == (0.0, 1.0)


def test_bootstrap_interval_of_one_run_is_nan():
    assert np.isnan(bootstrap_interval([3.0])).all()
    assert np.isnan(bootstrap_interval([[3.0, 4.0]])).all()


@pytest.mark.parametrize("function", [iqm, bootstrap_interval, mean_interval])
@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [1.0, np.inf]])
def test_bad_scores_raise_value_error(function, scores):
    with pytest.raises(ValueError, match=r"empty|NaN"):
        function(scores)


@pytest.mark.parametrize("function", [bootstrap_interval, mean_interval])
@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_bad_confidence_raises_value_error(function, confidence):
    with pytest.raises(ValueError, match="confidence"):
        function([1.0, 2.0], confidence=confidence)


def test_wrong_dimensions_raise_value_error():
    with pytest.raises(ValueError, match="dimensions"):
        bootstrap_interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="dimensions"):
        mean_interval(np.zeros((2, 2)))


def test_bad_replications_raise_value_error():
    with pytest.raises(ValueError, match="replications"):
        bootstrap_interval([1.0, 2.0], replications=0)
