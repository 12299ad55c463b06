"""Intervals: scipy's for one cell, right coverage, clusters, many cells at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workbench.errors import UserError
from workbench.stats import (
    Interval,
    difference_interval,
    mean_interval,
    mean_intervals,
    ratio_intervals,
    statistic_interval,
)


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(2.0, n)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_one_cell_agrees_with_scipy(method: str) -> None:
    values = skewed(40)
    ours = mean_interval(values, draws=20_000, method=method)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method=method, rng=0).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(values.mean()) and ours.n == 40
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_bca_moves_with_the_skew() -> None:
    values = skewed(30)
    plain, moved = (mean_interval(values, draws=20_000, method=method) for method in ("percentile", "bca"))
    assert moved.low > plain.low and moved.high > plain.high


def test_unpaired_difference_agrees_with_scipy() -> None:
    a, b = skewed(25, 1), skewed(60, 2) + 1
    ours = difference_interval(a, b, paired=False, draws=20_000)
    theirs = stats.bootstrap((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=20_000, rng=0)
    low, high = theirs.confidence_interval
    assert ours.low == pytest.approx(low, abs=0.03 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.03 * (high - low))
    assert ours.n == 85


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_95_percent_intervals_hold_the_truth_95_percent_of_the_time(method: str) -> None:
    values = np.random.default_rng(3).normal(1.0, 2.0, (60, 2_000))  # 2,000 experiments of 60 prompts
    intervals = mean_intervals(values, method=method)
    covered = ((intervals.low <= 1.0) & (intervals.high >= 1.0)).mean()
    assert 0.925 <= covered <= 0.965


def test_clusters_widen_the_interval_and_restore_coverage() -> None:
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(40), 5)
    values = random.normal(size=(40, 1_000))[groups] + 0.3 * random.normal(size=(200, 1_000))
    covered = {}
    for name, clusters in {"prompts": None, "groups": groups}.items():
        intervals = mean_intervals(values, clusters=clusters)
        covered[name] = ((intervals.low <= 0) & (intervals.high >= 0)).mean()
    assert covered["prompts"] < 0.75
    assert 0.91 <= covered["groups"] <= 0.97


def test_clusters_of_one_prompt_change_nothing_and_names_do_not_matter() -> None:
    values = skewed(30)
    assert mean_interval(values, clusters=np.arange(30)[::-1].copy()).low == pytest.approx(
        mean_interval(values[::-1]).low
    )
    pairs = np.repeat(np.arange(15), 2)
    assert mean_interval(values, clusters=pairs) == mean_interval(values, clusters=pairs * 7 - 3)


def test_many_cells_equal_single_cells_and_seeds_repeat() -> None:
    values = np.random.default_rng(5).normal(size=(20, 3, 4))
    intervals = mean_intervals(values, seed=1)
    assert intervals.estimate.shape == (3, 4)
    assert intervals.cell(1, 2) == pytest.approx(mean_interval(values[:, 1, 2], seed=1))
    assert np.array_equal(intervals.low, mean_intervals(values, seed=1).low)
    assert not np.array_equal(intervals.low, mean_intervals(values, seed=2).low)


def test_pairs_are_resampled_together() -> None:
    common = np.random.default_rng(6).normal(0, 10, 50)
    a, b = common + 1, common + np.random.default_rng(7).normal(0, 0.1, 50)
    paired, apart = (difference_interval(a, b, paired=paired) for paired in (True, False))
    assert paired.high - paired.low < 0.1 < 5 < apart.high - apart.low
    assert paired.n == 50


def test_ratio_of_means_is_resampled_as_a_ratio() -> None:
    random = np.random.default_rng(8)
    below = random.normal(2.0, 0.5, (80, 1_000))
    above = 0.4 * below + random.normal(0, 0.2, (80, 1_000))
    found = ratio_intervals(above, below)
    assert found.estimate == pytest.approx(above.mean(0) / below.mean(0))
    covered = ((found.low <= 0.4) & (found.high >= 0.4)).mean()
    assert 0.92 <= covered <= 0.97
    one = ratio_intervals(above, below[:, 0])
    assert one.cell(0) == pytest.approx(found.cell(0))


def test_edge_cases() -> None:
    same = mean_interval(np.full(10, 0.3))
    assert (same.low, same.high) == pytest.approx((0.3, 0.3))
    single = mean_interval([1.0])
    assert single.estimate == 1.0 and np.isnan([single.low, single.high]).all()
    holes = mean_intervals(np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, 4.0]]))
    assert np.isnan([holes.estimate[0], holes.low[0]]).all() and np.isfinite(holes.low[1])
    assert str(Interval(0.5, 0.4, 0.6, 9)) == "0.5 [0.4, 0.6], n = 9"
    with pytest.raises(UserError, match="no prompts"):
        mean_interval([])
    with pytest.raises(UserError, match="3 cluster numbers for 2 prompts"):
        mean_interval([1.0, 2.0], clusters=np.arange(3))
    with pytest.raises(UserError, match="same prompts on both sides; got 1 and 2"):
        difference_interval([1.0], [1.0, 2.0], paired=True)
    with pytest.raises(UserError, match="two arrays of clusters"):
        difference_interval([1.0, 2.0], [1.0], paired=False, clusters=np.arange(2))


@pytest.mark.parametrize("clusters", [None, np.arange(40) // 4])
def test_a_statistic_of_weights_agrees_with_the_mean(clusters: np.ndarray | None) -> None:
    values = skewed(40)
    ours = statistic_interval(lambda weights: weights @ values / weights.sum(1), 40, clusters=clusters, seed=3)
    assert ours == pytest.approx(mean_interval(values, clusters=clusters, seed=3))


def test_a_statistic_that_resampling_pushes_up_stays_inside_its_interval() -> None:
    values = np.array([1.0, -1.0] * 10)
    found = statistic_interval(lambda weights: np.abs(weights @ values) / weights.sum(1), 20)
    assert found.estimate == 0.0 == found.low < found.high
    with pytest.raises(UserError, match="cluster numbers"):
        statistic_interval(lambda weights: weights.sum(1), 3, clusters=np.arange(2))
