"""Verdicts from scores: exact against scipy and the published formula, and right as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from tunescope.contracts.decisions import (
    share_at_least,
    tango,
    unchanged_mean,
    unchanged_perplexity,
    unchanged_share,
)


def test_a_share_is_decided_by_exact_bounds() -> None:
    share = share_at_least(np.ones(64), 0.95, 0.95)
    assert share.verdict == "holds" and share.low == pytest.approx(0.05 ** (1 / 64)) and share.high == 1
    less = share_at_least(np.ones(40), 0.95, 0.95)
    assert less.verdict == "not enough evidence" and less.needed == 59
    assert 0.05 ** (1 / 59) >= 0.95 > 0.05 ** (1 / 58)
    mixed = share_at_least(np.array([1.0] * 30 + [0.0] * 30), 0.95, 0.95)
    assert mixed.verdict == "fails" and mixed.high == pytest.approx(beta.ppf(0.95, 31, 30)) and mixed.needed is None


def test_rows_of_one_group_are_one_trial() -> None:
    hits, clusters = np.ones(64), np.repeat(np.arange(16), 4)
    assert share_at_least(hits, 0.95, 0.95, clusters).verdict == "not enough evidence"
    assert share_at_least(hits, 0.95, 0.95, clusters).n == 16


def test_nothing_is_not_enough_evidence() -> None:
    share = share_at_least(np.array([]), 0.85, 0.95)
    assert share.verdict == "not enough evidence" and share.n == 0 and share.needed == 19


def test_bounds_of_a_paired_change() -> None:
    z = 1.6448536
    low, high = tango(0, 0, 100, 0.95)
    assert high == pytest.approx(z**2 / (100 + z**2), abs=1e-6) and low == pytest.approx(-high, abs=1e-6)
    assert tango(50, 0, 50, 0.95)[1] == 1 and tango(0, 50, 50, 0.95)[0] == -1
    low, high = tango(9, 3, 60, 0.95)
    assert low == pytest.approx(-tango(3, 9, 60, 0.95)[1], abs=1e-6) and low < 0.1 < high


def test_equivalence_holds_fails_or_stays_open() -> None:
    same = np.zeros(120)
    assert unchanged_share(same, same, 0.03, 0.95).verdict == "holds"
    few = unchanged_share(same[:20], same[:20], 0.03, 0.95)
    assert few.verdict == "not enough evidence" and few.needed == 88
    assert unchanged_share(same, np.ones(120), 0.03, 0.95).verdict == "fails"
    half = np.tile([0.0, 1.0], 60)
    assert unchanged_share(half, 1 - half, 0.03, 0.95).verdict == "not enough evidence"  # half turn either way


def test_numbers_need_twenty_units() -> None:
    assert unchanged_mean(np.zeros(10), 1.0, 0.95).needed == 20
    draw = np.random.default_rng(0)
    assert unchanged_mean(draw.normal(0, 1, 60), 1.0, 0.95).verdict == "holds"
    assert unchanged_mean(draw.normal(3, 1, 60), 1.0, 0.95).verdict == "fails"


def test_perplexity_is_a_ratio_over_tokens() -> None:
    tokens = np.full(30, 20.0)
    nothing = unchanged_perplexity(np.zeros(30), tokens, 0.02, 0.95)
    assert nothing.verdict == "holds" and nothing.estimate == 0
    worse = unchanged_perplexity(np.full(30, 20 * np.log(1.1)), tokens, 0.02, 0.95)
    assert worse.verdict == "fails" and worse.estimate == pytest.approx(0.1)


def test_a_true_limit_is_called_held_in_one_case_of_twenty() -> None:
    draw, rounds = np.random.default_rng(1), 200
    shares = [share_at_least(draw.random(80) < 0.9, 0.9, 0.95).verdict == "holds" for _ in range(rounds)]
    assert sum(shares) / rounds <= 0.05 + 0.025
    turned = [
        unchanged_share(np.zeros(150), draw.random(150) < 0.05, 0.05, 0.95).verdict == "holds" for _ in range(rounds)
    ]
    assert sum(turned) / rounds <= 0.05 + 0.03
