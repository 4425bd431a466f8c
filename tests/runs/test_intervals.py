"""Intervals against known distributions, brute force, closed formulas and scipy."""

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from inscape.runs import bootstrap, bootstrap_paired, proportion, r2


def covered(draw, truth, repeats=300, **options):
    hits = 0
    for seed in range(repeats):
        interval = bootstrap(**draw(np.random.default_rng(seed)), n=400, seed=seed, **options)
        hits += interval.lo <= truth <= interval.hi
    return hits / repeats


def test_covers_a_known_mean_as_often_as_it_says():
    def draw(rng):
        return {"values": rng.normal(3.0, 2.0, 60)}

    assert 0.90 <= covered(draw, 3.0) <= 0.98
    assert 0.74 <= covered(draw, 3.0, level=0.8) <= 0.86


def test_rows_of_one_unit_need_groups():
    def draw(rng, grouped=True):
        unit = np.repeat(np.arange(30), 8)
        values = rng.normal(0, 1, 30)[unit] + rng.normal(0, 0.2, 240)
        return {"values": values, "groups": unit} if grouped else {"values": values}

    assert covered(draw, 0.0) >= 0.88
    # Without groups the same rows pretend to be 240 independent ones.
    assert covered(lambda rng: draw(rng, grouped=False), 0.0) <= 0.65


def test_agrees_with_scipy():
    values = np.random.default_rng(5).gamma(2.0, size=80)
    ours = bootstrap(values, np.median, n=4000)
    theirs = stats.bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert ours.lo == pytest.approx(theirs.low, abs=0.05)
    assert ours.hi == pytest.approx(theirs.high, abs=0.05)
    assert ours.value == np.median(values)


def test_group_means_by_sums_equal_group_means_by_rows():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=200), rng.integers(0, 17, 200)
    fast = bootstrap(values, np.mean, groups=groups, n=300, seed=4)
    slow = bootstrap(values, lambda rows: float(np.mean(rows)), groups=groups, n=300, seed=4)
    assert (fast.lo, fast.hi) == pytest.approx((slow.lo, slow.hi), abs=1e-12)


def test_vectorised_statistic_equals_one_by_one():
    rng = np.random.default_rng(0)
    true = rng.normal(size=120)
    predicted = true + rng.normal(0, 0.5, 120)
    fast = bootstrap_paired(true, predicted, r2, n=200, seed=2)
    slow = bootstrap_paired(true, predicted, lambda y, p: r2_score(y, p), n=200, seed=2)
    assert fast.value == pytest.approx(r2_score(true, predicted), abs=1e-12)
    assert (fast.lo, fast.hi) == pytest.approx((slow.lo, slow.hi), abs=1e-12)
    assert fast.lo < fast.value < fast.hi


def test_missing_values_are_left_out_and_counted():
    values = [1.0, None, 3.0, float("nan"), 5.0]
    interval = bootstrap(pl.Series(values, strict=False))
    assert (interval.value, interval.n, interval.n_missing) == (3.0, 3, 2)
    assert (interval.lo, interval.hi) == (bootstrap([1.0, 3.0, 5.0]).lo, bootstrap([1.0, 3.0, 5.0]).hi)
    paired = bootstrap_paired([1.0, 2.0, np.nan, 4.0], [1.0, np.nan, 3.0, 4.0], r2)
    assert (paired.n, paired.n_missing) == (2, 2)


def test_what_cannot_be_estimated_is_none_in_the_summary():
    assert bootstrap([]).summary("x") == {"x": None, "x_lo": None, "x_hi": None}
    # One entity, however many rows it has, says nothing about other entities.
    one = bootstrap([1.0, 2.0, 3.0], groups=["Q1", "Q1", "Q1"])
    assert one.summary("x") == {"x": 2.0, "x_lo": None, "x_hi": None}
    assert bootstrap_paired([1.0] * 5, [1.0] * 5, r2).summary("r2") == {"r2": None, "r2_lo": None, "r2_hi": None}


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


@pytest.mark.parametrize(
    ("values", "options"),
    [([1.0, np.inf], {}), ([[1.0], [2.0]], {}), ([1.0, 2.0], {"groups": [1]}), ([1.0, 2.0], {"level": 1.0})],
)
def test_refuses(values, options):
    with pytest.raises(ValueError):
        bootstrap(values, **options)


@pytest.mark.parametrize(("k", "n", "level"), [(1, 2, 0.95), (7, 18, 0.95), (99, 100, 0.9), (0, 18, 0.95), (5, 5, 0.8)])
def test_proportion_is_wilsons_formula(k, n, level):
    z = stats.norm.ppf((1 + level) / 2)
    middle = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    interval = proportion([1] * k + [0] * (n - k), level=level)
    assert (interval.value, interval.n, interval.n_missing, interval.level) == (k / n, n, 0, level)
    assert (interval.lo, interval.hi) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_none_of_18_is_not_certainly_none():
    interval = proportion(np.zeros(18, dtype=bool))
    assert (interval.value, interval.lo) == (0.0, 0.0)
    assert interval.hi == pytest.approx(0.1759, abs=1e-4)


def test_missing_successes_are_left_out_and_counted():
    for values in ([True, None, False, True], [1.0, np.nan, 0.0, 1.0], pl.Series([True, None, False, True])):
        interval = proportion(values)
        assert (interval.value, interval.n, interval.n_missing) == (pytest.approx(2 / 3), 3, 1)
    for values, missing in (([], 0), ([None, np.nan], 2)):
        interval = proportion(values)
        assert (interval.n, interval.n_missing) == (0, missing)
        assert interval.summary("x") == {"x": None, "x_lo": None, "x_hi": None}


@pytest.mark.parametrize(("values", "level"), [([0.5], 0.95), ([2], 0.95), ([[1]], 0.95), ([np.inf], 0.95), ([1], 1.0)])
def test_proportion_refuses(values, level):
    with pytest.raises(ValueError):
        proportion(values, level=level)
