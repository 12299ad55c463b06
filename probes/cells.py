"""Cells of results in tables: which columns tell the rows apart, and what other cells score."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.cells import COLUMNS, Cell, label
from workbench.typing import Float, Int

__all__ = ["COLUMNS", "Cell", "columns_of", "keys", "label", "mean_of_others", "random_others"]

_PLACES = ("layer", "head", "expert", "module", "position")
"""Kept wherever two tables have them: heads of two layers are never the same head."""


def columns_of(*tables: pd.DataFrame) -> list[str]:
    """The columns by which the cells of all these tables are matched.

    Places (layer, head, expert, module, position) wherever all tables have such a column and one says something there;
    the rest (site, phase, model, ...) only where it tells rows of one table apart, so that one phase can be held
    against another.
    """
    shared = [name for name in COLUMNS if all(name in table for table in tables)]
    shared = [name for name in shared if any(table[name].notna().any() for table in tables)]
    return [name for name in shared if name in _PLACES or any(_varies(table[name]) for table in tables)]


def keys(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[Hashable, ...]]:
    """One key per row of ``table``; a missing value equals a missing value."""
    values = table[list(columns)].astype(object)
    return list(values.where(values.notna(), None).itertuples(index=False, name=None))


def random_others(n: int, draws: int, seed: int) -> Int[np.ndarray, "cell draw"] | None:
    """For each of ``n`` cells the numbers of random other cells; None where there is no other."""
    if n < 2:
        return None
    drawn = np.random.default_rng(seed).integers(n - 1, size=(n, draws))
    return drawn + (drawn >= np.arange(n)[:, None])


def mean_of_others(scores: Float[np.ndarray, " cell"], draws: int, seed: int) -> Float[np.ndarray, " cell"]:
    """The control of a map: for each cell the mean score of ``draws`` random other cells; NaN where there is none."""
    others = random_others(len(scores), draws, seed)
    return np.full(len(scores), np.nan) if others is None else scores[others].mean(1)


def _varies(column: Any) -> bool:
    return int(column.nunique(dropna=False)) > 1
