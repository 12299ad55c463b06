"""The localization benchmark as dots: one row per organism and measure."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import whiskers
from workbench.figures.layout import laid_out


def localization_dots(table: pd.DataFrame) -> go.Figure:
    """``value`` of every measure between 0 and 1, with its range over seeds and the chance level; columns organism,
    probe, measure, own, value, least, most, chance, bar. Measures on other scales are left to the table."""
    shown = table[table["value"].between(0, 1) & table["most"].le(1)].iloc[::-1]
    rows = [
        f"{organism} · {probe} · {measure}"
        for organism, probe, measure in zip(shown["organism"], shown["probe"], shown["measure"], strict=True)
    ]
    figure = go.Figure()
    figure.add_scatter(
        x=shown["chance"], y=rows, mode="markers", name="chance", hoverinfo="skip",
        marker=dict(symbol="x-thin", size=8, line=dict(width=1.5, color="rgb(110, 110, 110)")),
    )  # fmt: skip
    for own, name, symbol in ((True, "its own question", "circle"), (False, "another question", "circle-open")):
        some = (shown["own"] == own).to_numpy()
        part = shown[some]
        figure.add_scatter(
            x=part["value"], y=np.array(rows)[some].tolist(), mode="markers", name=name,
            marker=dict(symbol=symbol, size=10, color="rgb(33, 102, 172)"),
            error_x=whiskers(part, "value", "least", "most"),
            customdata=np.stack([part["question"].map(html.escape), part["bar"], part["seeds"]], axis=1),
            hovertemplate="%{y}<br>%{customdata[0]}<br>%{x:.3f}, bar %{customdata[1]} (seeds: %{customdata[2]})"
            "<extra></extra>",
        )  # fmt: skip
    return laid_out(
        figure, "Probes against planted truth", height=160 + 22 * len(rows), margin=dict(l=20, r=20, t=60, b=60),
        legend_below=0.06, xaxis=dict(title=dict(text="value (mean and range over seeds)"), range=[-0.03, 1.03]),
        yaxis=dict(automargin=True, categoryorder="array", categoryarray=rows, tickfont=dict(size=11)),
    )  # fmt: skip
