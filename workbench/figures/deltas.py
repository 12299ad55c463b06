"""How far activations moved: by head, by layer and position, or along the layers."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.cells import Axes, cell_heatmap
from workbench.figures.intervals import band, whiskers
from workbench.figures.layout import laid_out

SCORE = "mean shift / base length"


def delta_figure(table: pd.DataFrame, site: str, *, limit: float | None = None) -> go.Figure:
    """One kind of site of an activation difference's table (columns site, layer, score, low, high, control, q and
    head or position). ``limit`` fixes the colour scale of the maps."""
    rows = table[table["site"] == site]
    title = f"{site}: how far tuning moved it"
    if "position" in rows and rows["position"].notna().all():
        if "head" in rows and rows["head"].notna().any():
            strongest = rows.groupby(["layer", "position"])["score"].idxmax()
            rows, title = rows.loc[strongest], f"{title} (strongest head)"
        return cell_heatmap(
            rows, Axes("layer", "position", "L{row:.0f}, token {column:.0f}", SCORE), title=title, limit=limit
        )
    if "head" in rows and rows["head"].notna().all():
        return cell_heatmap(rows, Axes("layer", "head", "L{row:.0f}H{column:.0f}", SCORE), title=title, limit=limit)
    return _along_layers(rows.sort_values("layer"), title)


def _along_layers(rows: pd.DataFrame, title: str) -> go.Figure:
    """Score with its interval, and the control's range in grey."""
    x = rows["layer"].tolist()
    figure = go.Figure()
    if "control_low" in rows:
        figure.add_scatter(
            **band(x, rows["control_low"], rows["control_high"], "rgba(127,127,127,0.3)"),
            name="control, 95 % of sign flips",
        )
    figure.add_scatter(
        x=x,
        y=rows["score"].tolist(),
        error_y=whiskers(rows),
        mode="lines+markers",
        line={"color": "#D55E00"},
        name="mean shift, 95 % interval",
        hovertemplate="layer %{x}: %{y:.3g}<extra></extra>",
    )
    return laid_out(
        figure, title, height=400, xaxis={"title": "layer", "dtick": 1 if len(x) <= 40 else None},
        yaxis={"title": SCORE, "rangemode": "tozero"}, legend_below=0.25,
    )  # fmt: skip
