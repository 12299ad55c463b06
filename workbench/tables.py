"""Tables for people: every number beside its interval, as text that fits a terminal, a report and a notebook."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

ESTIMATES = ("score", "estimate", "share", "accuracy", "value", "probability")
"""The columns whose interval is in ``low`` and ``high``; any other ``x`` has it in ``x_low`` and ``x_high``."""


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` as text: ``x``, ``x_low`` and ``x_high`` become one column, as in ``0.48 [0.37, 0.59]``.

    Numbers keep four significant digits (three beside an interval); a missing one is an empty text.
    """
    joined = _bounds(table)
    hidden = {name for pair in joined.values() for name in pair}
    shown = {}
    for name in table:
        if name in hidden:
            continue
        if name in joined:
            low, high = (table[bound] for bound in joined[name])
            shown[str(name)] = [_interval(*cells) for cells in zip(table[name], low, high, strict=True)]
        else:
            shown[str(name)] = [cell_text(value) for value in table[name]]
    return pd.DataFrame(shown, index=table.index)


def beyond_control(table: pd.DataFrame) -> pd.Series:
    """Which cells score further from 0 than their control, with q below 0.05; a control that is missing counts as 0."""
    return (table["q"] < 0.05) & (table["score"].abs() > table["control"].abs().fillna(0))


def told_from_control(table: pd.DataFrame) -> pd.Series:
    """Which cells can be told from their control: q below 0.05, or without a q the control outside their interval.

    A score that is known exactly (low = high, as of weights) has a q of another question, whether the cell stands out
    among the others; and without a q nothing was tested. Both must then also be further from 0 than their control.

    Example:
        ``told_from_control(result.frame())``
    """
    q = table["q"] if "q" in table else pd.Series(np.nan, index=table.index)
    exact = table["low"] == table["high"] if {"low", "high"} <= set(table) else pd.Series(False, index=table.index)
    control = table["control"] if "control" in table else pd.Series(np.nan, index=table.index)
    further = table["score"].abs() > control.abs().fillna(0)
    bounded = {"low", "high"} <= set(table)
    outside = ~control.between(table["low"], table["high"]) if bounded else pd.Series(False, index=table.index)
    return ((q < 0.05) & (further | ~exact)) | (q.isna() & outside & further)


def cell_text(value: Any, digits: int = 4) -> str:
    """One value as text; whole numbers stay whole."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if pd.api.types.is_float(value):
        return f"{value + 0.0:.{digits}g}"  # adding 0 turns -0 into 0
    return str(value)


def _bounds(table: pd.DataFrame) -> dict[Any, tuple[Any, Any]]:
    """Estimate -> its two columns. ``low`` and ``high`` belong to the first known estimate."""
    names = set(table.columns)
    bounds = {name: (f"{name}_low", f"{name}_high") for name in table if {f"{name}_low", f"{name}_high"} <= names}
    if {"low", "high"} <= names and (own := next((name for name in ESTIMATES if name in names), None)):
        bounds[own] = ("low", "high")
    return bounds


def _interval(value: Any, low: Any, high: Any) -> str:
    if not cell_text(low) or not cell_text(high):
        return cell_text(value, 3)
    return f"{cell_text(value, 3)} [{cell_text(low, 3)}, {cell_text(high, 3)}]"
