"""The columns of a scored cell."""

from __future__ import annotations

import numpy as np

from workbench.stats.bootstrap import mean_interval
from workbench.stats.intervals import Interval
from workbench.stats.shares import share_interval


def scored(
    values: np.ndarray, *, name: str = "score", seed: int = 0, clusters: np.ndarray | None = None
) -> dict[str, float]:
    """The mean of ``values`` [unit] with its 95 % interval, as the columns ``name``, low, high.

    ``clusters`` [unit] names what is resampled together.
    """
    return _columns(name, mean_interval(np.asarray(values, dtype=np.float64), seed=seed, clusters=clusters))


def scored_share(
    hits: np.ndarray, *, name: str = "score", seed: int = 0, clusters: np.ndarray | None = None
) -> dict[str, float]:
    """The same for hits [unit], bools or shares in 0..1; where all are 0 or all are 1, the exact binomial interval."""
    return _columns(name, share_interval(hits, seed=seed, clusters=clusters))


def _columns(name: str, found: Interval) -> dict[str, float]:
    return {name: found.estimate, "low": found.low, "high": found.high}
