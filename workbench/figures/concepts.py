"""Candidate directions: how much of tuning's change each holds, beside random ones."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import whiskers
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe


def concept_figure(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Bars of ``score`` with intervals, the control as a line; the tokens of each direction under the pointer.

    ``table``: direction, score, low, high, control, q, up, down (and latent, for dictionaries).
    """
    rows = table.sort_values("direction")
    names = rows["latent"] if "latent" in rows else rows["direction"]
    texts = [
        f"95 % interval {row['low']:.2%} to {row['high']:.2%}<br>"
        f"random directions {row['control']:.2%}, q = {row['q']:.2g}"
        f"<br>raises {safe(row['up'])}<br>lowers {safe(row['down'])}"
        for row in rows.to_dict("records")
    ]
    figure = go.Figure()
    figure.add_bar(
        x=[str(name) for name in names],
        y=rows["score"].tolist(),
        error_y=whiskers(rows),
        marker_color=["#0072B2" if q < 0.05 else "#bbbbbb" for q in rows["q"]],
        customdata=[[int(direction), text] for text, direction in zip(texts, rows["direction"], strict=True)],
        unselected={"marker": {"opacity": 1}},
        hovertemplate="direction %{x}: %{y:.2%}<br>%{customdata[1]}<extra></extra>",
        name="direction (grey: not told from random)",
    )
    figure.add_scatter(
        x=[str(name) for name in names],
        y=rows["control"].tolist(),
        mode="lines",
        hoverinfo="skip",
        line={"color": "#D55E00", "dash": "dot"},
        name="random directions",
    )
    return laid_out(
        figure, title, height=400, hovermode="x",
        xaxis={"title": "latent" if "latent" in rows else "direction", "type": "category"},
        yaxis={"title": "share of tuning's change", "tickformat": ".0%"}, legend_below=0.25,
    )  # fmt: skip
