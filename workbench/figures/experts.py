"""Figures of mixtures of experts: the map of layer by expert, and behaviour against the number of experts switched."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.cells import Axes, cell_heatmap
from workbench.figures.intervals import band, whiskers
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe


def expert_heatmap(table: pd.DataFrame, *, title: str = "Experts", limit: float | None = None) -> go.Figure:
    """Layer by expert of a table with columns layer, expert, score, low, high, control, q."""
    axes = Axes("layer", "expert", "L{row:.0f}E{column:.0f}", "difference in share of tokens")
    return cell_heatmap(table, axes, title=title, limit=limit)


def switching_lines(
    table: pd.DataFrame, *, title: str = "Switching experts", behaviour: str = "behaviour"
) -> go.Figure:
    """Behaviour against ``count`` switched experts, with the band of frequency-matched random experts."""
    return count_lines(
        table, title=title, x="experts switched", y=behaviour, control="frequency-matched random experts"
    )


def count_lines(table: pd.DataFrame, *, title: str, x: str, y: str, control: str) -> go.Figure:
    """``score`` with ``low`` and ``high`` against ``count``, beside the control's mean and 95 % range over draws."""
    shown = table.sort_values("count")
    figure = go.Figure()
    figure.add_scatter(
        **band(shown["count"], shown["control_low"], shown["control_high"], "rgba(150, 150, 150, 0.25)"),
        name="95 % of control draws",
    )
    figure.add_scatter(
        x=shown["count"], y=shown["control"], mode="lines+markers", name=control, marker=dict(symbol="square"),
        line=dict(color="rgb(110, 110, 110)", dash="dash"),
    )  # fmt: skip
    figure.add_scatter(
        x=shown["count"], y=shown["score"], mode="lines+markers", name="ranked", line=dict(color="rgb(33, 102, 172)"),
        error_y=whiskers(shown),
        customdata=shown[["low", "high", "control", "control_low", "control_high"]].to_numpy().tolist(),
        hovertemplate="%{x}: %{y:.3g}, 95 % interval %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>"
        "control %{customdata[2]:.3g} (%{customdata[3]:.3g} to %{customdata[4]:.3g})<extra></extra>",
    )  # fmt: skip
    return laid_out(
        figure, title,
        xaxis=dict(title=dict(text=x), rangemode="tozero", dtick=1 if shown["count"].max() <= 20 else None),
        yaxis=dict(title=dict(text=safe(y)), rangemode="tozero"), legend_below=0.25,
    )  # fmt: skip
