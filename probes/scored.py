"""The columns of a scored cell."""

from __future__ import annotations

import numpy as np

from workbench.stats.bootstrap import mean_interval


def scored(
    values: np.ndarray, *, name: str = "score", seed: int = 0, clusters: np.ndarray | None = None
) -> dict[str, float]:
    """The mean of ``values`` [unit] with its 95 % interval, as the columns ``name``, low, high.

    ``clusters`` [unit] names what is resampled together. Units may be bools.
    """
    found = mean_interval(np.asarray(values, dtype=np.float64), seed=seed, clusters=clusters)
    return {name: found.estimate, "low": found.low, "high": found.high}
