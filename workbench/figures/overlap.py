"""Overlap of two maps' best cells against how many are taken."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.knob import COLOURS, GREY


def overlap_curve(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """``table``: columns k, score (share in both), control, low, high (range of chance)."""
    rows = table.sort_values("k")
    x = rows["k"].tolist()
    figure = go.Figure()
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*rows["high"], *rows["low"].tolist()[::-1]], fill="toself", mode="lines",
        line=dict(width=0), fillcolor="rgba(127,127,127,0.25)", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.add_scatter(x=x, y=rows["control"].tolist(), name="chance (95 % range)", line=dict(color=GREY))
    figure.add_scatter(x=x, y=rows["score"].tolist(), name="shared", mode="lines+markers", line=dict(color=COLOURS[0]))
    figure.update_layout(
        title=dict(text=html.escape(title), font=dict(size=15)), template="plotly_white",
        height=380, legend=dict(orientation="h", y=-0.25),
        xaxis=dict(title=dict(text="k best cells of each map"), type="log"),
        yaxis=dict(title=dict(text="share of the k in both"), range=[0, 1.05]),
    )  # fmt: skip
    return figure
