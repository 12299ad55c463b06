"""Bootstrap intervals of means, differences and ratios of means, over prompts or clusters of prompts, for
many cells.

Bias-corrected and accelerated intervals (BCa) after Efron (1987, "Better bootstrap confidence intervals") by
default. A mean over resampled clusters is one matrix product, so a map of 1,000 cells costs milliseconds; one
cell agrees with :func:`scipy.stats.bootstrap`. A NaN among the values is a NaN in that cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import special

from workbench.errors import UserError
from workbench.stats.intervals import Interval, Intervals

DRAWS = 2_000
LEVEL = 0.95
Method = Literal["bca", "percentile"]
_BLOCK = 2**24
"""How many resampled means are held at once (128 MiB)."""


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """The mean over prompts ``[prompt]`` with its interval. See :func:`mean_intervals`."""
    intervals = mean_intervals(
        np.asarray(values)[:, None], clusters=clusters, level=level, draws=draws, seed=seed, method=method
    )
    return intervals.cell(0)


def mean_intervals(
    values: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    method: Method = "bca",
) -> Intervals:
    """The mean over prompts of every cell, ``[prompt, *cell]`` -> ``[*cell]``, with its interval.

    ``clusters`` ``[prompt]`` names what is drawn together (``prompts.clusters``); without it, prompts are
    drawn one by one. With one cluster the interval is NaN: there is nothing to judge it by.
    """
    return ratio_intervals(
        values, np.ones(len(values)), clusters=clusters, level=level, draws=draws, seed=seed, method=method
    )


def ratio_intervals(
    above: np.ndarray,
    below: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    method: Method = "bca",
) -> Intervals:
    """The ratio of two means over the same prompts, such as effect recovered over effect present.

    ``above`` is ``[prompt, *cell]``; ``below`` is the same or ``[prompt]``. Both are resampled together.
    """
    top, cells = _flat(above)
    bottom, _ = _flat(below)
    n = len(top)
    top, bottom = _cluster_sums(top, clusters), _cluster_sums(bottom, clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = top.sum(0) / bottom.sum(0)
        left_out = (top.sum(0) - top) / (bottom.sum(0) - bottom)
        low, high = np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
        if len(top) > 1:
            counts = _counts(len(top), draws, (seed,))
            for part in _blocks(len(estimate), draws):
                own = bottom if bottom.shape[1] == 1 else bottom[:, part]
                resampled = (counts @ top[:, part]) / (counts @ own)
                edges = _edges(estimate[part], resampled, [left_out[:, part]], level, method)
                low[part], high[part] = edges
    return Intervals(estimate.reshape(cells), low.reshape(cells), high.reshape(cells), n)


def difference_interval(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    paired: bool,
    clusters: tuple[np.ndarray, np.ndarray] | np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """mean(first) - mean(second), with its interval.

    ``paired``: the same prompts in the same order, resampled together (``clusters`` is one array). Otherwise
    each side is resampled by itself (``clusters`` is one array for each) and ``n`` counts both.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if paired:
        if a.shape != b.shape:
            raise UserError(f"A paired difference needs the same prompts on both sides; got {len(a)} and {len(b)}.")
        if isinstance(clusters, tuple):
            raise UserError("A paired difference takes one array of clusters; both sides share the prompts.")
        return mean_interval(a - b, clusters=clusters, level=level, draws=draws, seed=seed, method=method)
    of_a, of_b = clusters if isinstance(clusters, tuple) else (clusters, clusters)
    if clusters is not None and not isinstance(clusters, tuple):
        raise UserError("An unpaired difference takes two arrays of clusters, one for each side.")
    means_a, left_a = _resampled_means(a, of_a, draws, (seed, 1))
    means_b, left_b = _resampled_means(b, of_b, draws, (seed, 2))
    estimate = np.array([a.mean() - b.mean()])
    if len(left_a) < 2 or len(left_b) < 2:
        return Interval(float(estimate[0]), np.nan, np.nan, len(a) + len(b))
    # Leaving out one of either side moves the difference by that side's change alone.
    low, high = _edges(estimate, means_a - means_b, [left_a, -left_b], level, method)
    return Interval(float(estimate[0]), float(low[0]), float(high[0]), len(a) + len(b))


def statistic_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """Any statistic of ``n`` prompts with its interval: ``statistic`` maps weights ``[draw, prompt]`` to ``[draw]``.

    A weight says how often a prompt was drawn; the same seed draws the same prompts as :func:`mean_interval`. The
    interval is widened to hold the estimate where a statistic that resampling pushes one way (an absolute value) would
    leave it out.
    """
    groups = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if len(groups) != n or not n:
        raise UserError(f"There are {len(groups)} cluster numbers for {n} prompts; give one for each of at least one.")
    size = int(groups.max()) + 1
    estimate = statistic(np.ones((1, n)))
    if size < 2:
        return Interval(float(estimate[0]), np.nan, np.nan, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = statistic(_counts(size, draws, (seed,))[:, groups])
        left_out = np.concatenate([
            statistic((np.arange(size)[part, None] != np.arange(size))[:, groups].astype(np.float64))
            for part in _blocks(size, size)
        ])  # fmt: skip
        low, high = _edges(estimate, resampled[:, None], [left_out[:, None]], level, method)
    value = float(estimate[0])
    return Interval(value, min(float(low[0]), value), max(float(high[0]), value), n)


def _flat(values: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Values as ``[prompt, cell]`` in float64, and the shape of the cells."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise UserError("There are no prompts to average over; give at least one.")
    return array.reshape(len(array), -1), array.shape[1:]


def _cluster_sums(values: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """Sums ``[cluster, cell]`` of ``[prompt, cell]``; each prompt by itself when there are no clusters."""
    if clusters is None:
        return values
    if len(clusters) != len(values):
        raise UserError(f"There are {len(clusters)} cluster numbers for {len(values)} prompts; give one for each.")
    _, numbers = np.unique(clusters, return_inverse=True)
    sums = np.zeros((int(numbers.max()) + 1, values.shape[1]))
    np.add.at(sums, numbers, values)
    return sums


def _counts(size: int, draws: int, seed: tuple[int, ...]) -> np.ndarray:
    """How often each of ``size`` clusters is in each resample, ``[draw, cluster]``."""
    drawn = np.random.default_rng(seed).integers(0, size, (draws, size))
    offsets = np.arange(draws)[:, None] * size
    return np.bincount((drawn + offsets).ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def _resampled_means(
    values: np.ndarray, clusters: np.ndarray | None, draws: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Means of resamples ``[draw, 1]`` and with each cluster left out ``[cluster, 1]``."""
    top = _cluster_sums(values[:, None], clusters)
    bottom = _cluster_sums(np.ones((len(values), 1)), clusters)
    counts = _counts(len(top), draws, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ top) / (counts @ bottom), (top.sum(0) - top) / (bottom.sum(0) - bottom)


def _blocks(cells: int, draws: int) -> list[slice]:
    width = max(1, _BLOCK // draws)
    return [slice(start, start + width) for start in range(0, cells, width)]


def _edges(
    estimate: np.ndarray, resampled: np.ndarray, left_out: list[np.ndarray], level: float, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the interval of every cell, from resamples ``[draw, cell]``."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    shares = np.repeat(tails[:, None], len(estimate), axis=1)
    if method == "bca":
        shares = _bca_shares(shares, estimate, resampled, left_out)
    ordered = np.sort(resampled, axis=0)
    place = shares * (len(ordered) - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(ordered) - 1)
    cells = np.arange(len(estimate))
    low_side, high_side = ordered[below, cells], ordered[above, cells]
    edges = low_side + (place - below) * (high_side - low_side)
    edges[:, np.isnan(resampled).any(axis=0)] = np.nan
    return edges[0], edges[1]


def _bca_shares(
    shares: np.ndarray, estimate: np.ndarray, resampled: np.ndarray, left_out: list[np.ndarray]
) -> np.ndarray:
    """The shares of the resamples to cut at, moved for bias and skew; where all values are equal, not
    moved."""
    below = ((resampled < estimate).sum(0) + (resampled <= estimate).sum(0)) / (2 * len(resampled))
    bias = special.ndtri(below)
    cubes = squares = np.zeros_like(estimate)
    for means in left_out:
        pull = (means.mean(0) - means) * (len(means) - 1)
        cubes, squares = cubes + (pull**3).sum(0) / len(means) ** 3, squares + (pull**2).sum(0) / len(means) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = cubes / (6 * squares**1.5)
        moved = bias + special.ndtri(shares)
        corrected = special.ndtr(bias + moved / (1 - skew * moved))
    return np.where(np.isfinite(corrected) & np.isfinite(skew), corrected, shares)
