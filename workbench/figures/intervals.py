"""How intervals are drawn: whiskers about a value, or a band along a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def whiskers(
    rows: pd.DataFrame, value: str = "score", low: str = "low", high: str = "high", **looks: Any
) -> dict[str, Any]:
    """Plotly's error bars from ``low`` to ``high`` (columns of ``rows``) about ``value``; ``looks``: colour, width."""
    return {
        "type": "data", "symmetric": False, "array": (rows[high] - rows[value]).clip(lower=0).tolist(),
        "arrayminus": (rows[value] - rows[low]).clip(lower=0).tolist(), **looks,
    }  # fmt: skip


def band(x: Iterable[Any], low: Iterable[float], high: Iterable[float], fill: str, **looks: Any) -> dict[str, Any]:
    """The keywords of ``add_scatter`` for a filled band without a line; ``looks``: its name, legend group, row."""
    return {
        "x": [*x, *list(x)[::-1]], "y": [*high, *list(low)[::-1]], "fill": "toself", "fillcolor": fill,
        "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", **looks,
    }  # fmt: skip


def translucent(colour: str, share: float = 0.18) -> str:
    """``#rrggbb`` with that opacity, as plotly writes it."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"
