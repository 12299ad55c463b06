"""Shares of prompts: the bootstrap inside, the exact binomial interval at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.stats import mean_intervals, share_interval, share_intervals
from workbench.stats.bootstrap import difference_interval
from workbench.stats.shares import share_difference, with_exact_change


def test_no_miss_among_21_prompts_is_not_certainty() -> None:
    found = share_interval(np.ones(21, dtype=bool))
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 21))  # P(21 hits of 21) at this share is 2.5 %
    none = share_interval(np.zeros(21))
    assert (none.low, none.high) == pytest.approx((0.0, 1 - found.low))


def test_prompts_of_one_cluster_count_once() -> None:
    found = share_interval(np.ones(20), clusters=np.repeat(np.arange(5), 4))
    assert found.n == 20 and found.low == pytest.approx(0.025 ** (1 / 5))


def test_between_the_ends_it_is_the_bootstrap() -> None:
    hits = np.random.default_rng(0).random((40, 3)) < [0.2, 0.5, 0.9]
    assert not set(hits.mean(0)) & {0.0, 1.0}
    ours, plain = share_intervals(hits, seed=2), mean_intervals(hits, seed=2)
    assert np.array_equal(ours.low, plain.low) and np.array_equal(ours.high, plain.high)


def test_a_change_of_every_prompt_is_not_certain_and_no_change_is_plain() -> None:
    changes = np.stack([np.full(9, -1.0), np.full(9, 1.0), np.zeros(9)], axis=1)
    found = with_exact_change(mean_intervals(changes), changes)
    edge = share_interval(np.ones(9)).low
    assert found.low == pytest.approx([-1.0, edge, 0.0]) and found.high == pytest.approx([-edge, 1.0, 0.0])


def test_two_sets_without_a_hit_may_differ_by_what_either_may_hide() -> None:
    units = np.arange(9), np.arange(4)
    none = share_difference(np.zeros(9), np.zeros(4), clusters=units)
    bounds = share_interval(np.zeros(9)).high, share_interval(np.zeros(4)).high
    assert (none.low, none.high) == pytest.approx((-bounds[1], bounds[0])) and none.n == 13
    apart = share_difference(np.ones(9), np.zeros(4), clusters=units)
    assert apart.estimate == apart.high == 1 and 0 < apart.low < 1 - bounds[1]
    hits = np.array([0.0, 1, 1, 0, 1, 1, 0, 1, 1]), np.array([0.0, 1, 0, 0])
    assert share_difference(*hits, clusters=units) == difference_interval(*hits, paired=False, clusters=units)


def test_coverage_near_the_end() -> None:
    """At a true share of 97 % half of all samples of 21 hold no miss: the bootstrap alone covers half the time."""
    hits = np.random.default_rng(1).random((21, 4_000)) < 0.97
    found, plain = share_intervals(hits), mean_intervals(hits)
    covered, alone = (((one.low <= 0.97) & (one.high >= 0.97)).mean() for one in (found, plain))
    assert covered >= 0.93 and alone < 0.6
