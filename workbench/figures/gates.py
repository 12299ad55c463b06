"""How well each layer tells when a gate should open."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import whiskers
from workbench.figures.knob import COLOURS, GREY
from workbench.figures.layout import laid_out


def layer_curve(table: pd.DataFrame, layer: int, *, title: str = "") -> go.Figure:
    """Area under the ROC curve (score, low, high) against layer, the control's beside it, and the gate's layer."""
    rows = table.sort_values("layer")
    figure = go.Figure([
        go.Scatter(x=rows["layer"].tolist(), y=rows["score"].tolist(), error_y=whiskers(rows), mode="lines+markers",
                   line={"color": COLOURS[0]}, name="held-out prompts, 95 % interval"),
        go.Scatter(x=rows["layer"].tolist(), y=rows["control"].tolist(), mode="lines",
                   line={"color": GREY, "dash": "dot"}, name="shuffled labels"),
    ])  # fmt: skip
    figure.add_vline(x=layer, line={"color": GREY, "width": 1})
    return laid_out(
        figure, title, x="layer", yaxis={"title": "area under the ROC curve", "range": [0, 1.05]}, legend_below=0.25,
    )  # fmt: skip
