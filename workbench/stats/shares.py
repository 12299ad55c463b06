"""Intervals of shares of prompts, which stay honest where every prompt agrees.

A bootstrap of 21 hits out of 21 says [1, 1], because no resample holds a miss. There the exact binomial interval
(Clopper & Pearson 1934) stands instead, with one trial per prompt, or per cluster where prompts come in clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from workbench.stats.bootstrap import DRAWS, LEVEL, mean_intervals
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
    found = mean_intervals(values, clusters=clusters, level=level, draws=draws, seed=seed)
    trials = len(values) if clusters is None else len(np.unique(clusters))
    low, high = found.low.copy(), found.high.copy()
    for share in (0, 1):
        exact = binomtest(share * trials, trials).proportion_ci(level, method="exact")
        low[found.estimate == share], high[found.estimate == share] = exact.low, exact.high
    return found._replace(low=low, high=high)
