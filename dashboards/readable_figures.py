"""Figures as the app shows them: no label cut off, and magnitudes on a scale that begins at zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

_FROM_WHITE = 0.5
"""Where the middle of a diverging scale lies."""


def with_room(figure: go.Figure) -> go.Figure:
    """``figure`` itself; its axes keep room for their labels."""
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def from_zero(figure: go.Figure) -> go.Figure:
    """``figure`` itself; a map of magnitudes, which has no negative value, leaves out the negative half of its
    colours."""
    for trace in figure.data:
        if trace.type == "heatmap" and _is_symmetric(trace) and _least(trace.z) >= 0.0:
            scale = [(share, colour) for share, colour in trace.colorscale or () if share >= _FROM_WHITE]
            if len(scale) > 1:
                top = trace.zmax
                halved = [[2.0 * (share - _FROM_WHITE), colour] for share, colour in scale]
                trace.update(zmid=None, zmin=0.0, zmax=top, colorscale=halved)
    return figure


def _is_symmetric(trace: Any) -> bool:
    return trace.zmin is not None and trace.zmax is not None and trace.zmin == -trace.zmax


def _least(cells: Any) -> float:
    numbers = np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)
    return float(np.nanmin(numbers)) if np.isfinite(numbers).any() else -1.0
