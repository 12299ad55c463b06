"""Intervals and tests over many cells at once: units (prompts, pairs) along the first axis, cells behind it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 1000
FLIPS = 4000
"""Sign flips: the smallest p-value is 1 / (FLIPS + 1)."""
_BLOCK = 1 << 24
"""Numbers held at once while resampling."""


class Interval(NamedTuple):
    """The mean over units with its 95 % bootstrap interval, [*cell] each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_interval(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Percentile bootstrap of the mean of ``values`` [unit, *cell] over units. One unit has no interval (NaN)."""
    units, cells = len(values), values.reshape(len(values), -1).astype(np.float64)
    shape = values.shape[1:]
    mean = cells.mean(0)
    if units < 2:
        nothing = np.full(shape, np.nan)
        return Interval(mean.reshape(shape), nothing, nothing)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=draws) / units
    low, high = np.empty_like(mean), np.empty_like(mean)
    for part in _parts(cells.shape[1], draws):
        low[part], high[part] = np.quantile(weights @ cells[:, part], [0.025, 0.975], axis=0)
    constant = cells.min(0) == cells.max(0)  # weights do not add up to 1 in the last bit
    low, high = np.where(constant, cells[0], low), np.where(constant, cells[0], high)
    return Interval(mean.reshape(shape), low.reshape(shape), high.reshape(shape))


def sign_flip(values: np.ndarray, seed: int = 0, flips: int = FLIPS) -> np.ndarray:
    """p-values [*cell], two-sided, that the mean of ``values`` [unit, *cell] is 0: the units' signs exchanged at
    random, the same way in every cell. All sign patterns are used when there are few enough."""
    units, cells = len(values), values.reshape(len(values), -1).astype(np.float64)
    if 2**units <= flips:
        codes = np.arange(1, 2**units)[:, None] >> np.arange(units)
        signs = 1.0 - 2.0 * (codes & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, units))
    seen = np.abs(cells.sum(0))
    as_large = np.empty(cells.shape[1])
    slack = 1e-12 * np.abs(cells).sum(0)
    for part in _parts(cells.shape[1], len(signs)):
        as_large[part] = (np.abs(signs @ cells[:, part]) >= seen[part] - slack[part]).sum(0)
    return ((1 + as_large) / (1 + len(signs))).reshape(values.shape[1:])


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg false-discovery rates over all cells of ``p``; NaN stays NaN and does not count."""
    flat = np.full(p.size, np.nan)
    known = ~np.isnan(p.reshape(-1))
    if known.any():
        flat[known] = stats.false_discovery_control(p.reshape(-1)[known])
    return flat.reshape(p.shape)


def _parts(cells: int, rows: int) -> list[slice]:
    width = max(1, _BLOCK // max(1, rows))
    return [slice(start, start + width) for start in range(0, cells, width)]
