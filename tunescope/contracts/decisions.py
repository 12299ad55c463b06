"""From scores to a verdict: what the data show, at the confidence that the contract demands, and what n would do.

Every claim is decided by one-sided bounds, each at the contract's confidence c. A claim of equivalence is two one-sided
tests (Schuirmann 1987). The interval shown is made of the same two bounds, so it has coverage 2c - 1: 90 % for .95.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from workbench.stats.bootstrap import mean_interval, ratio_intervals

Verdict = Literal["holds", "fails", "not enough evidence"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "fails"
UNDECIDED: Verdict = "not enough evidence"
LEAST = 20
"""Prompts below which no mean of numbers is judged: a bootstrap of fewer is too narrow."""
MOST = 1_000_000
"""The largest n that is looked for."""


@dataclass(frozen=True)
class Finding:
    """One decided claim."""

    verdict: Verdict
    estimate: float
    low: float
    high: float
    n: int
    """Prompts, or groups of prompts that are drawn together."""
    needed: int | None
    """The n that would decide, were the rate seen the true one; None: decided already, or undecidable at this rate."""
    detail: str = ""


def share_at_least(hits: np.ndarray, least: float, confidence: float, clusters: np.ndarray | None = None) -> Finding:
    """Whether the share of hits in the population is at least ``least``.

    Args:
        hits: [prompt], 0 or 1.
        least: The share claimed, between 0 and 1.
        confidence: Of each one-sided bound.
        clusters: [prompt], what is drawn together; a cluster counts once, by its mean.

    Returns:
        The finding, with exact binomial bounds (Clopper & Pearson 1934), one trial per prompt or cluster: no share
        of the same mean spreads more than hits and misses do, so clusters that are hit in part only make them wider.
    """
    values, n = _units(hits, clusters)
    if not n:
        return Finding(UNDECIDED, math.nan, math.nan, math.nan, 0, _smallest(lambda size: size, least, confidence))
    rate, total = float(values.mean()), float(values.sum())
    low = _binomial(math.floor(total + 1e-9), n, confidence)[0]
    high = _binomial(math.ceil(total - 1e-9), n, confidence)[1]
    verdict = HOLDS if low >= least else FAILS if high < least else UNDECIDED
    needed = _smallest(lambda size: round(rate * size), least, confidence) if verdict == UNDECIDED else None
    return Finding(verdict, rate, low, high, n, needed)


def mean_at_least(values: np.ndarray, least: float, confidence: float, clusters: np.ndarray | None = None) -> Finding:
    """Whether the mean of numbers that are no shares is at least ``least``; never with fewer than 20 units."""
    interval = mean_interval(np.asarray(values, dtype=float), clusters=clusters, level=2 * confidence - 1)
    per_unit, n = _units(values, clusters)
    if n < LEAST:
        return Finding(UNDECIDED, interval.estimate, interval.low, interval.high, n, LEAST)
    verdict = HOLDS if interval.low >= least else FAILS if interval.high < least else UNDECIDED
    needed = _n_of_mean(per_unit, abs(interval.estimate - least), confidence) if verdict == UNDECIDED else None
    return Finding(verdict, interval.estimate, interval.low, interval.high, n, needed)


def unchanged_share(
    base: np.ndarray, tuned: np.ndarray, within: float, confidence: float, clusters: np.ndarray | None = None
) -> Finding:
    """Whether a share changed by less than ``within``, the same prompts before and after.

    Without clusters the bounds are the score bounds of a paired difference (Tango 1998), which stay honest where no
    prompt turned; with clusters a bootstrap over them, or Tango's bounds over clusters where none turned.
    """
    change = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    per_unit, n = _units(change, clusters)
    if len(per_unit) < len(change) and per_unit.any() and n > 1:
        interval = mean_interval(change, clusters=clusters, level=2 * confidence - 1)
        if n < LEAST:
            return Finding(UNDECIDED, interval.estimate, interval.low, interval.high, n, LEAST)
        return _equivalent(interval.estimate, (interval.low, interval.high), n, (-within, within), per_unit, confidence)
    turned = (int((change > 0).sum()), int((change < 0).sum())) if len(per_unit) == len(change) else (0, 0)
    low, high = tango(*turned, n, confidence)
    finding = _equivalent(float(change.mean()), (low, high), n, (-within, within), per_unit, confidence)
    if finding.verdict != UNDECIDED:
        return finding
    up, down = turned[0] / n, turned[1] / n

    def decided(size: int) -> bool:
        ends = tango(round(up * size), round(down * size), size, confidence)
        return _verdict(ends, (-within, within)) != UNDECIDED

    return Finding(UNDECIDED, finding.estimate, low, high, n, _first(decided))


def unchanged_mean(change: np.ndarray, within: float, confidence: float, clusters: np.ndarray | None = None) -> Finding:
    """Whether the mean of paired changes of a number lies within ``within`` of 0; never with fewer than 20 units."""
    interval = mean_interval(np.asarray(change, dtype=float), clusters=clusters, level=2 * confidence - 1)
    per_unit, n = _units(change, clusters)
    if n < LEAST:
        return Finding(UNDECIDED, interval.estimate, interval.low, interval.high, n, LEAST)
    return _equivalent(interval.estimate, (interval.low, interval.high), n, (-within, within), per_unit, confidence)


def unchanged_perplexity(
    change: np.ndarray, tokens: np.ndarray, within: float, confidence: float, clusters: np.ndarray | None = None
) -> Finding:
    """Whether perplexity changed by less than the share ``within``.

    Args:
        change: [text], log-probability of the text in the base less that in the tuned model, in nats.
        tokens: [text], tokens scored.
        within: .02 for 2 %.
        confidence: Of each one-sided bound.
        clusters: [text], what is drawn together.

    Returns:
        The relative change of the perplexity over all tokens, by a bootstrap over texts.
    """
    cell = ratio_intervals(change[:, None], tokens, clusters=clusters, level=2 * confidence - 1).cell(0)
    per_unit, n = _units(change / tokens.mean(), clusters)
    ends = (math.expm1(cell.low), math.expm1(cell.high))
    if n < LEAST:
        return Finding(UNDECIDED, math.expm1(cell.estimate), *ends, n, LEAST)
    return _equivalent(math.expm1(cell.estimate), ends, n, (-within, within), per_unit, confidence)


def tango(up: int, down: int, n: int, confidence: float) -> tuple[float, float]:
    """Score bounds of a paired difference of shares, (up - down) / n, each one-sided at ``confidence`` (Tango 1998)."""
    z = float(norm.ppf(confidence))

    def statistic(delta: float) -> float:
        b = -up - down + (2 * n - up + down) * delta
        c = -down * delta * (1 - delta)
        less = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        spread = math.sqrt(max(n * (2 * less + delta * (1 - delta)), 1e-300))
        return (up - down - n * delta) / spread

    seen, edge = (up - down) / n, 1 - 1e-12
    low = -1.0 if seen <= -edge else float(brentq(lambda delta: statistic(delta) - z, -edge, seen - 1e-12))
    high = 1.0 if seen >= edge else float(brentq(lambda delta: statistic(delta) + z, seen + 1e-12, edge))
    return low, high


def _units(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, int]:
    """The mean of each unit, and how many there are."""
    array = np.asarray(values, dtype=float)
    if clusters is None:
        return array, len(array)
    _, numbers = np.unique(clusters, return_inverse=True)
    counts = np.bincount(numbers)
    return np.bincount(numbers, weights=array) / counts, len(counts)


def _binomial(hits: int, n: int, confidence: float) -> tuple[float, float]:
    ends = binomtest(hits, n).proportion_ci(2 * confidence - 1, method="exact")
    low = (1 - confidence) ** (1 / n) if hits == n else float(ends.low)
    high = 1 - (1 - confidence) ** (1 / n) if hits == 0 else float(ends.high)
    return low, high


def _verdict(ends: tuple[float, float], region: tuple[float, float]) -> Verdict:
    if region[0] <= ends[0] and ends[1] <= region[1]:
        return HOLDS
    return FAILS if ends[1] < region[0] or ends[0] > region[1] else UNDECIDED


def _equivalent(
    estimate: float,
    ends: tuple[float, float],
    n: int,
    region: tuple[float, float],
    units: np.ndarray,
    confidence: float,
) -> Finding:
    verdict = _verdict(ends, region)
    distance = min(abs(estimate - region[0]), abs(estimate - region[1]))
    needed = _n_of_mean(units, distance, confidence) if verdict == UNDECIDED else None
    return Finding(verdict, estimate, *ends, n, needed)


def _n_of_mean(units: np.ndarray, distance: float, confidence: float) -> int | None:
    """So many units bring the bound to the limit, by the normal approximation; None at the limit itself."""
    if distance <= 0 or len(units) < 2:
        return None
    n = math.ceil((float(norm.ppf(confidence)) * float(units.std(ddof=1)) / distance) ** 2)
    return max(n, len(units) + 1) if n <= MOST else None


def _smallest(hits: Callable[[int], int], least: float, confidence: float) -> int | None:
    """The smallest n that decides a share, where ``hits`` of n are hits."""

    def decided(size: int) -> bool:
        low, high = _binomial(hits(size), size, confidence)
        return low >= least or high < least

    return _first(decided)


def _first(decided: Callable[[int], bool]) -> int | None:
    """About the smallest n that decides: doubled until one does, then halved in; None above a million."""
    high = 1
    while not decided(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
