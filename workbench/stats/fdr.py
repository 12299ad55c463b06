"""False-discovery rates of maps with many cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats


def q_values(p: np.ndarray, method: Literal["bh", "by"] = "bh") -> np.ndarray:
    """q-values of p-values, same shape: Benjamini & Hochberg (1995), or Benjamini & Yekutieli (2001) as
    ``by``.

    Cells below q = 0.05 hold at most 5 % false ones on average. A cell that was not tested (NaN) stays NaN
    and does not count among the tests.
    """
    p_values = np.asarray(p, dtype=np.float64)
    q = np.full(p_values.shape, np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        q[tested] = stats.false_discovery_control(p_values[tested], method=method)
    return q
