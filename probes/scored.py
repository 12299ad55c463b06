"""The columns of a scored cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.resampling import cluster_means, interval
from workbench.stats.bootstrap import DRAWS, mean_interval
from workbench.stats.fdr import q_values
from workbench.stats.intervals import Interval
from workbench.stats.shares import share_interval, share_intervals
from workbench.stats.tests import Alternative, paired_permutation
from workbench.typing import Float


def bracketed(low: float, high: float, spec: str) -> str:
    """An interval for a sentence, behind a space; nothing where one group of prompts gives none.

    Example:
        ``bracketed(0.1, 0.25, ".0%")`` is ``" [10%, 25%]"``.
    """
    return "" if np.isnan(low) or np.isnan(high) else f" [{low:{spec}}, {high:{spec}}]"


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


def beside_control(
    values: np.ndarray, control: np.ndarray, clusters: np.ndarray, *, seed: int = 0, share: bool = False
) -> dict[str, float]:
    """A cell beside its control: score, low, high of ``values`` [unit], ``control`` (the mean of what the control
    scored on the same units) and ``p`` of the difference.

    Args:
        values: What the cell scored.
        control: What its control scored, on the same units.
        clusters: What is resampled together.
        seed: Of the resamples and of the flipped signs.
        share: ``values`` are hits or shares in 0..1 (:func:`scored_share`).
    """
    columns = (scored_share if share else scored)(values, seed=seed, clusters=clusters)
    p = paired_p(np.asarray(values, np.float64) - control, clusters, seed=seed)
    return {**columns, "control": float(np.mean(control)), "p": p}


def paired_p(
    differences: np.ndarray, clusters: np.ndarray, *, seed: int = 0, alternative: Alternative = "two-sided"
) -> float:
    """Whether ``differences`` [unit] are centred on 0, by flipping the signs of the clusters' means; 1 where none
    differs."""
    tested = paired_permutation(cluster_means(differences[:, None], clusters), seed=seed, alternative=alternative)
    return float(tested.p[0])


def count_columns(
    steps: Sequence[int],
    values: Float[np.ndarray, "count unit"],
    drawn: Float[np.ndarray, "draw count unit"],
    clusters: np.ndarray,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """A curve over how many cells were changed, ``values`` shares in 0..1, beside as many random cells in each draw.

    Columns: count; score, low, high; control with its interval over the draws; p and q of the difference, unknown
    where nothing is changed (the first count).
    """
    intervals = share_intervals(values.T, clusters=clusters, draws=draws, seed=seed)
    by_draw = drawn.mean(2)
    control_low, control_high = interval(by_draw)
    p = paired_permutation(cluster_means((values - drawn.mean(0)).T, clusters), seed=seed).p
    p[0] = np.nan
    return {
        "count": steps, "score": intervals.estimate, "low": intervals.low, "high": intervals.high,
        "control": by_draw.mean(0), "control_low": control_low, "control_high": control_high, "p": p, "q": q_values(p),
    }  # fmt: skip


def with_q(lines: pd.DataFrame | Sequence[Mapping[str, Any]], *, keep_p: bool = True) -> pd.DataFrame:
    """A table with the column q, the false-discovery rates of its column p, which goes unless it is kept."""
    table = pd.DataFrame(lines)
    tested = table.assign(q=q_values(table["p"].to_numpy(np.float64)))
    return tested if keep_p else tested.drop(columns="p")


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, "low": interval.low, "high": interval.high}
