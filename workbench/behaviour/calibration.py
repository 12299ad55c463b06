"""How far confidence and being right go together: reliability bins and the expected calibration error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.stats.bootstrap import mean_interval
from workbench.typing import Float, Int

BINS = 10


def bin_of(confidence: Float[np.ndarray, " prompt"], bins: int = BINS) -> Int[np.ndarray, " prompt"]:
    """The bin of equal width that each confidence falls into; 1 belongs to the last."""
    return np.minimum((np.asarray(confidence) * bins).astype(np.int64), bins - 1)


def calibration_error(
    weights: Float[np.ndarray, "draw prompt"],
    confidence: Float[np.ndarray, " prompt"],
    right: Float[np.ndarray, " prompt"],
    bins: int = BINS,
) -> Float[np.ndarray, " draw"]:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017) of each weighting of the prompts.

    The mean over bins, by their weight, of |share right - mean confidence|. Few prompts make it too large, so compare
    models on the same prompts.
    """
    members = bin_of(confidence, bins)[:, None] == np.arange(bins)
    gaps = weights @ (members * (confidence - right)[:, None])
    return np.abs(gaps).sum(1) / weights.sum(1)


def reliability(
    confidence: Float[np.ndarray, " prompt"],
    right: Float[np.ndarray, " prompt"],
    *,
    bins: int = BINS,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The reliability curve: one line per bin that holds prompts, with mean confidence and the share right.

    Columns: from_, to, confidence, share, low, high (95 %, over the bin's prompts), n.
    """
    members = bin_of(confidence, bins)
    lines = []
    for number in np.unique(members):
        in_bin = members == number
        interval = mean_interval(right[in_bin], clusters=None if clusters is None else clusters[in_bin], seed=seed)
        lines.append(
            {"from_": number / bins, "to": (number + 1) / bins, "confidence": float(confidence[in_bin].mean()),
             "share": interval.estimate, "low": interval.low, "high": interval.high, "n": int(in_bin.sum())}
        )  # fmt: skip
    return pd.DataFrame(lines)
