"""Behaviour of several models as dots with intervals."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colour-blind safe palette, grey first."""
PER_LINE = 4
"""Panels beside each other; more go below."""


def behaviour_figure(table: pd.DataFrame, title: str = "Behaviour, with 95 % intervals over prompts") -> go.Figure:
    """One panel per metric, one dot per model; ``table`` has model, metric, estimate, low, high, n."""
    metrics = list(dict.fromkeys(table["metric"]))
    models = list(dict.fromkeys(table["model"]))
    lines = math.ceil(len(metrics) / PER_LINE)
    figure = make_subplots(
        rows=lines, cols=min(len(metrics), PER_LINE),
        subplot_titles=[escape(str(metric), quote=False) for metric in metrics], vertical_spacing=0.3 / lines,
        shared_yaxes=True,
    )  # fmt: skip
    for place, metric in enumerate(metrics):
        part = table[table["metric"] == metric].set_index("model")
        for number, model in enumerate(models):
            dot = _dot(part.loc[model], str(model), str(metric), COLOURS[number % len(COLOURS)])
            figure.add_trace(dot, row=1 + place // PER_LINE, col=1 + place % PER_LINE)
    figure.update_yaxes(autorange="reversed")
    height = lines * (70 + 34 * len(models)) + 60
    figure.update_layout(title=title, height=height, margin={"l": 180}, template="plotly_white")
    return figure


def _dot(row: Any, model: str, metric: str, colour: str) -> go.Scatter:
    change = ""
    if "change_low" in row and model != "tuned":
        change = f"<br>against tuned {row['change']:+.3g} [{row['change_low']:+.3g}, {row['change_high']:+.3g}]"
    return go.Scatter(
        x=[row["estimate"]],
        y=[escape(model, quote=False)],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["estimate"]],
            "arrayminus": [row["estimate"] - row["low"]],
        },
        mode="markers",
        marker={"size": 10, "color": colour},
        showlegend=False,
        hovertemplate=(
            f"{escape(model, quote=False)}<br>{escape(metric, quote=False)} %{{x:.3g}}"
            f"<br>95 % [{row['low']:.3g}, {row['high']:.3g}]"
            f"{change}<br>n = {int(row['n'])}<extra></extra>"
        ),
    )
