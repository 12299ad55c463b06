"""A behaviour on held-out prompts, model by model."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import whiskers


def held_out_bars(table: pd.DataFrame, behaviour: str) -> go.Figure:
    """Bars of ``table`` (model, behaviour, low, high, other): the class that shows the behaviour, and the other one."""
    error = whiskers(table, "behaviour")
    figure = go.Figure([
        go.Bar(x=table["model"], y=table["behaviour"], error_y=error, name="prompts that show it in the tuned model"),
        go.Bar(x=table["model"], y=table["other"], name="other prompts"),
    ])  # fmt: skip
    return figure.update_layout(
        title=f"{behaviour} on held-out prompts", yaxis_title=behaviour, barmode="group", template="plotly_white"
    )
