"""Where weights changed: layer by module, head or expert, and bars by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.cells import GREY, Axes, cell_heatmap
from workbench.figures.layout import laid_out

_LABELS = {"module": "L{row:.0f} {column}", "head": "L{row:.0f}H{column:.0f}", "expert": "L{row:.0f}E{column:.0f}"}


def cell_map(
    table: pd.DataFrame, column: str, *, title: str = "", unit: str = "score", limit: float | None = None
) -> go.Figure:
    """Layer by ``column`` ("module", "head" or "expert") of a weight table; parts outside the layers are not drawn.

    ``unit`` says what the colour means; ``limit`` fixes the scale, so that two maps can be compared.
    """
    inside = table[table["layer"].notna()].astype({"layer": int})
    return cell_heatmap(inside, Axes("layer", column, _LABELS[column], unit), title=title, limit=limit)


def layer_bars(table: pd.DataFrame, *, title: str = "", unit: str = "score") -> go.Figure:
    """One bar per layer (columns layer, score, control), the control as a dashed line."""
    ordered = table.sort_values("layer")
    layers = ordered["layer"].astype(int).tolist()
    figure = go.Figure()
    figure.add_bar(
        x=layers, y=ordered["score"].to_numpy(np.float64), name=unit, marker=dict(color="#2166ac"), width=0.7,
        hovertemplate="layer %{x}: %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=layers, y=ordered["control"].to_numpy(np.float64), name="control", mode="lines+markers",
        line=dict(color=GREY, dash="dash"), hovertemplate="control %{y:.3g}<extra></extra>",
    )  # fmt: skip
    return laid_out(
        figure, title, height=360, margin=dict(l=60, r=20, t=60, b=60), legend_below=0.3,
        xaxis=dict(title=dict(text="layer"), dtick=None if len(layers) > 40 else 1), y=unit,
    )  # fmt: skip
