"""The reliability curve: share right against confidence."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.behaviour import COLOURS


def calibration_figure(curve: pd.DataFrame, title: str = "Calibration: share right against confidence") -> go.Figure:
    """One line per model with 95 % bars, beside the diagonal of perfect calibration; dots grow with their prompts.

    ``curve`` has model, confidence, share, low, high, n, one line per bin.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#999999", "dash": "dot"}, name="as confident as right",
        hoverinfo="skip",
    )  # fmt: skip
    most = max(1, int(curve["n"].max()))
    for number, (model, rows) in enumerate(curve.groupby("model", sort=False)):
        figure.add_scatter(
            x=rows["confidence"].tolist(),
            y=rows["share"].tolist(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (rows["high"] - rows["share"]).fillna(0).tolist(),
                "arrayminus": (rows["share"] - rows["low"]).fillna(0).tolist(),
                "thickness": 1,
            },
            mode="lines+markers",
            line={"color": COLOURS[number % len(COLOURS)]},
            marker={"size": [6 + 10 * (n / most) ** 0.5 for n in rows["n"]]},
            name=escape(str(model), quote=False),
            customdata=rows[["low", "high", "n"]].to_numpy().tolist(),
            hovertemplate=(
                "confidence %{x:.2f}: right %{y:.0%} [%{customdata[0]:.0%}, %{customdata[1]:.0%}], "
                "n = %{customdata[2]}<extra>%{fullData.name}</extra>"
            ),
        )
    figure.update_layout(
        title={"text": title},
        height=440,
        xaxis={"title": "mean confidence of the bin (probability of the most likely token)", "range": [-0.02, 1.02]},
        yaxis={"title": "share right", "range": [-0.05, 1.05], "tickformat": ".0%"},
        template="plotly_white",
        legend={"orientation": "h", "y": -0.25},
    )
    return figure
