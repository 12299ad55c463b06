"""Intervals of shares of prompts, which stay honest where every prompt agrees.

A bootstrap of 21 hits out of 21 says [1, 1], because no resample holds a miss. There the exact binomial interval
(Clopper & Pearson 1934) stands instead, with one trial per prompt, or per cluster where prompts come in clusters. The
same for a paired change of a share that is -1 or 1: every prompt turned. A change of exactly 0 on every prompt stays
[0, 0], so that a model against itself is a plain null. The difference of the shares of two sets of prompts takes its
interval from theirs where all prompts of a set agree (Newcombe 1998, method 10).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from workbench.stats.bootstrap import DRAWS, LEVEL, difference_interval, mean_intervals
from workbench.stats.intervals import Interval, Intervals


def share_interval(
    hits: Sequence[float] | np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The share of prompts ``[prompt]`` that are hits, with its interval. See :func:`share_intervals`."""
    return share_intervals(np.asarray(hits)[:, None], clusters=clusters, level=level, draws=draws, seed=seed).cell(0)


def share_intervals(
    hits: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Intervals:
    """The share of hits of every cell, ``[prompt, *cell]`` (bools, or shares in 0..1) -> ``[*cell]``.

    The bootstrap of :func:`workbench.stats.mean_intervals`, and the exact binomial interval in the cells whose share
    is 0 or 1.
    """
    values = np.asarray(hits, dtype=np.float64)
    intervals = mean_intervals(values, clusters=clusters, level=level, draws=draws, seed=seed)
    return _exact(intervals, (0, 1), _trials(values, clusters), level)


def with_exact_change(intervals: Intervals, values: np.ndarray, clusters: np.ndarray | None = None) -> Intervals:
    """``intervals``, those of paired changes of shares ``[prompt, *cell]``, with an exact end where every prompt
    turned the same way. A share of turns p with no turn back is the change itself, which lies between its exact lower
    bound and 1."""
    return _exact(intervals, (-1, 1), _trials(values, clusters), LEVEL)


def share_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    clusters: tuple[np.ndarray, np.ndarray],
    seed: int = 0,
) -> Interval:
    """The share of hits of one set of prompts less that of another, each drawn by itself.

    Example:
        >>> ends = np.arange(5)
        >>> none = share_difference(np.zeros(5), np.zeros(5), clusters=(ends, ends))
        >>> none.estimate, round(none.low, 2), round(none.high, 2)
        (0.0, -0.52, 0.52)
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    drawn = difference_interval(a, b, paired=False, clusters=clusters, seed=seed)
    shares = len(a) and len(b) and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()
    if not shares or (np.ptp(a) > 0 and np.ptp(b) > 0):
        return drawn
    own, other = (share_interval(side, clusters=units, seed=seed) for side, units in zip((a, b), clusters, strict=True))
    low, high = difference_edges(own, other)
    return drawn._replace(low=low, high=high)


def difference_edges(first: Interval, second: Interval) -> tuple[float, float]:
    """The ends of the interval of ``first`` less ``second``, from both their intervals (Newcombe 1998, method 10)."""
    difference = first.estimate - second.estimate
    below = np.hypot(first.estimate - first.low, second.high - second.estimate)
    above = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return max(-1.0, float(difference - below)), min(1.0, float(difference + above))


def _trials(values: np.ndarray, clusters: np.ndarray | None) -> int:
    return len(values) if clusters is None else len(np.unique(clusters))


def _exact(intervals: Intervals, ends: tuple[int, ...], trials: int, level: float) -> Intervals:
    """The exact interval of ``trials`` trials in the cells whose estimate is one of ``ends`` (-1, 0 or 1)."""
    low, high = intervals.low.copy(), intervals.high.copy()
    for end in ends:
        exact = binomtest(abs(end) * trials, trials).proportion_ci(level, method="exact")
        edges = (exact.low, exact.high) if end >= 0 else (-exact.high, -exact.low)
        low[intervals.estimate == end], high[intervals.estimate == end] = edges
    return intervals._replace(low=low, high=high)
