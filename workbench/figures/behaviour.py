"""Behaviour of several models as dots with intervals."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colour-blind safe palette, grey first."""


def behaviour_figure(table: pd.DataFrame, title: str = "Behaviour, with 95 % intervals over prompts") -> go.Figure:
    """One panel per metric, one dot per model; ``table`` has model, metric, estimate, low, high, n."""
    metrics = list(dict.fromkeys(table["metric"]))
    models = list(dict.fromkeys(table["model"]))
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True)
    for place, metric in enumerate(metrics, start=1):
        part = table[table["metric"] == metric].set_index("model")
        for number, model in enumerate(models):
            row = part.loc[model]
            figure.add_trace(
                go.Scatter(
                    x=[row["estimate"]],
                    y=[model],
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [row["high"] - row["estimate"]],
                        "arrayminus": [row["estimate"] - row["low"]],
                    },
                    mode="markers",
                    marker={"size": 10, "color": COLOURS[number % len(COLOURS)]},
                    showlegend=False,
                    hovertemplate=(
                        f"{model}<br>{metric} %{{x:.3f}}<br>95 % [{row['low']:.3f}, {row['high']:.3f}]"
                        f"<br>n = {int(row['n'])}<extra></extra>"
                    ),
                ),
                row=1,
                col=place,
            )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(title=title, height=120 + 44 * len(models), margin={"l": 180}, template="plotly_white")
    return figure
