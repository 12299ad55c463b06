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
    """Which cells lie beyond their control as seen from 0, q below 0.05; where there is no q, the control outside the
    interval. A control that is missing counts as 0.

    Every count, colour and word "beyond control" is this rule. A small q alone is none: q of a probe may ask whether
    the cell differs from 0, or whether it stands out among the others.

    Example:
        ``beyond_control(result.frame())``
    """

    def column(name: str) -> pd.Series:
        return table[name] if name in table else pd.Series(np.nan, index=table.index)

    q, control = column("q"), column("control").fillna(0)
    outside = ~control.between(table["low"], table["high"]) if {"low", "high"} <= set(table) else False
    further = (table["score"] - control) * np.sign(table["score"]) > 0
    return further & ((q < 0.05) | (q.isna() & outside))


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
