"""Edges by size, and how faithful circuits of the best edges are."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import whiskers
from workbench.figures.knob import COLOURS, DASHES, GREY
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe


def edge_bars(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """The largest edges (module, score, low, high) as bars with intervals."""
    rows = table.iloc[::-1]
    names = [safe(str(module)) for module in rows["module"]]
    figure = go.Figure(go.Bar(x=rows["score"].tolist(), y=names, orientation="h", error_x=whiskers(rows),
                              marker={"color": COLOURS[0]}))  # fmt: skip
    return laid_out(figure, title, height=160 + 18 * len(rows), x="answer minus distractor carried by the edge")


def faithfulness_curve(curve: pd.DataFrame, *, title: str = "") -> go.Figure:
    """f(k) against the share of edges (logarithmic), one line per model and ranking; random rankings in grey."""
    figure = go.Figure()
    models = list(dict.fromkeys(curve["model"]))
    for (model, method), rows in curve.groupby(["model", "method"], sort=False):
        random = str(method).startswith("random")
        number = models.index(model)
        line = {"color": GREY if random else COLOURS[number % len(COLOURS)], "width": 1 if random else 2,
                "dash": "dot" if random else DASHES[0 if method == "size" else 1]}  # fmt: skip
        figure.add_scatter(x=rows["share"].tolist(), y=rows["faithfulness"].tolist(), mode="lines+markers", line=line,
                           name=safe(f"{model}, {method}"))  # fmt: skip
    return laid_out(figure, title, height=460, xaxis={"title": "share of edges", "type": "log"}, y="faithfulness f")
