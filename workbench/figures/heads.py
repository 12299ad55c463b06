"""Maps of attention heads: layer by head."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.cells import Axes, cell_heatmap


def head_heatmap(
    table: pd.DataFrame, *, title: str = "Heads", score: str = "score", limit: float | None = None
) -> go.Figure:
    """Layer by head of a probe's table (columns layer, head, score, low, high, control, q); ``score`` says what the
    colour means."""
    return cell_heatmap(table, Axes("layer", "head", "L{row:.0f}H{column:.0f}", score), title=title, limit=limit)
