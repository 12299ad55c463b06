"""Overlap of two maps' best cells against how many are taken."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.cells import short_name
from workbench.figures.intervals import band, whiskers
from workbench.figures.knob import COLOURS, GREY
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe


def overlap_curve(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """``table``: columns k, score (share in both), control, low, high (range of chance)."""
    rows = table.sort_values("k")
    x = rows["k"].tolist()
    figure = go.Figure()
    figure.add_scatter(**band(x, rows["low"], rows["high"], "rgba(127,127,127,0.25)", showlegend=False))
    figure.add_scatter(x=x, y=rows["control"].tolist(), name="chance (95 % range)", line=dict(color=GREY))
    figure.add_scatter(x=x, y=rows["score"].tolist(), name="shared", mode="lines+markers", line=dict(color=COLOURS[0]))
    return laid_out(
        figure, title, height=380, legend_below=0.25,
        xaxis=dict(title=dict(text="k best cells of each map"), type="log"),
        yaxis=dict(title=dict(text="share of the k in both"), range=[0, 1.05]),
    )  # fmt: skip


def shared_bars(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """How many weights two regions share, one bar per pair of regions, beside what chance shares.

    ``table``: first, second, shared, expected, low, high (95 % range of chance), p.
    """
    names = [safe(f"{short_name(row['first'])} and {short_name(row['second'])}") for row in table.to_dict("records")]
    figure = go.Figure()
    figure.add_bar(
        x=table["shared"].tolist(), y=names, orientation="h", name="shared weights", marker={"color": COLOURS[0]},
        width=0.5, customdata=table[["expected", "low", "high", "p"]].to_numpy().tolist(),
        hovertemplate="%{y}: %{x} shared<br>by chance %{customdata[0]:.1f} "
        "(%{customdata[1]:.0f} to %{customdata[2]:.0f})<br>p = %{customdata[3]:.2g}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=table["expected"].tolist(), y=names, mode="markers", name="chance, 95 % range",
        marker={"symbol": "line-ns-open", "size": 18, "color": COLOURS[5], "line": {"width": 3}}, hoverinfo="skip",
        error_x=whiskers(table, "expected", color=COLOURS[5]),
    )  # fmt: skip
    laid_out(
        figure, title, height=200 + 44 * len(table),
        xaxis={"title": "number of weights in both regions", "rangemode": "tozero"}, legend_below=0.5,
        margin={"l": 60, "r": 20, "t": 60, "b": 60},
    )  # fmt: skip
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    return figure
