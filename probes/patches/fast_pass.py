"""The fast first pass: every cell estimated by gradients, the leading ones and a random sample of the others exact.

Attribution patching (Nanda 2023; Syed et al. 2023) costs two forward passes and one backward pass a batch for all cells
at once. What it says of single cells can be wrong where the model saturates, so the sample shows how wrong it is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from probes.patches.cells import Cell
from workbench.typing import Bool, Float

MANY_CELLS = 128
"""Maps of at most so many cells are always patched exactly."""
TIMES = 10
"""How many times as long as the estimates the exact patches take where estimates become the default."""
ESTIMATE = 4
"""Cost of the estimates in forward passes: two forward passes and one backward pass, which costs two."""
ALL, LEADING, RANDOM, ESTIMATED = "all", "leading", "random", "no"


def exact_cost(cells: Sequence[Cell], n_layers: int, tokens: int) -> float:
    """Forward passes of a batch that patching every cell by itself takes, replayed parts as shares of the layers.

    Args:
        cells: What is patched.
        n_layers: Layers of the model.
        tokens: Prompt length where a patch of the last token runs that token alone, on cached keys and values; else 1.
    """
    return sum((n_layers - cell.layer) / n_layers / (tokens if cell.positions == (-1,) else 1) for cell in cells)


def too_long(cells: Sequence[Cell], n_layers: int, tokens: int) -> bool:
    """Whether the exact patches of all cells take so long that estimates go first; arguments as in
    :func:`exact_cost`."""
    return len(cells) > MANY_CELLS and exact_cost(cells, n_layers, tokens) > TIMES * ESTIMATE


def confirmed_cells(
    estimate: Float[np.ndarray, " cell"], leading: float, others: float, seed: int
) -> tuple[Bool[np.ndarray, " cell"], Bool[np.ndarray, " cell"]]:
    """Which cells are patched exactly: the ``leading`` share by size of the estimate, and a random share of ``others``.

    Args:
        estimate: Mean estimated effect.
        leading: Share of all cells; 0 confirms nothing, no random ones either.
        others: Share of all cells, drawn with ``seed`` among those that do not lead; at least one where it is above 0.

    Returns:
        Masks of the leading and of the random cells.
    """
    count = len(estimate)
    top, sample = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    top[np.argsort(-np.abs(estimate), kind="stable")[: math.ceil(leading * count)]] = True
    rest = np.flatnonzero(~top)
    size = min(len(rest), max(1, round(others * count))) if leading and others else 0
    sample[np.random.default_rng(seed).choice(rest, size=size, replace=False)] = True
    return top, sample


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How far estimates and exact scores lie apart, for the leading and for the random cells.

    Args:
        table: Rows with ``score``, ``attribution`` (in the unit of the score) and ``confirmed``.

    Returns:
        Columns confirmed, n, median_error, largest_error, largest_score, rank_correlation (NaN below three cells).
    """
    rows = []
    for kind in (LEADING, RANDOM):
        cells = table[table["confirmed"] == kind]
        if len(cells) == 0:
            continue
        score, estimate = cells["score"].to_numpy(), cells["attribution"].to_numpy()
        apart = np.abs(score - estimate)
        several = len(cells) > 2 and np.ptp(score) > 0 and np.ptp(estimate) > 0
        rows.append({
            "confirmed": kind, "n": len(cells), "median_error": float(np.median(apart)),
            "largest_error": float(apart.max()), "largest_score": float(np.abs(score).max()),
            "rank_correlation": float(spearmanr(score, estimate).statistic) if several else math.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)
