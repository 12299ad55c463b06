"""The knob's slope: how behaviour follows the set value, with its interval and the random band."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.intervals import band, translucent
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito: told apart by colour-blind readers too."""
GREY = "#7f7f7f"
DASHES = ("solid", "dash", "dashdot")
SYMBOLS = ("circle", "square", "diamond")
"""Lines that lie on each other are told apart by these as well."""


def knob_slope(
    sweep: pd.DataFrame, natural: pd.DataFrame | None = None, *, intent: str | None = None, title: str = ""
) -> go.Figure:
    """Share of answers of ``intent`` against the set value, one line per model with its 95 % interval.

    ``sweep`` has columns model, direction ("knob" or "random"), value, intent, share, low, high; the grey band is
    the range of the random directions in the first model. ``natural`` (model, intent, value) marks, below the
    axis, where the first model puts the coordinate by itself.
    """
    intents = list(dict.fromkeys(sweep["intent"]))
    shown = intent if intent is not None else intents[0]
    rows = sweep[sweep["intent"] == shown].sort_values("value")
    models = list(dict.fromkeys(sweep["model"]))
    figure = go.Figure()
    random = rows[(rows["direction"] == "random") & (rows["model"] == models[0])]
    if len(random):
        _band(figure, random, GREY, f"random directions ({models[0]}), range", dash="dot")
    for number, model in enumerate(models):
        knob = rows[(rows["direction"] == "knob") & (rows["model"] == model)]
        looks = {"dash": DASHES[number % len(DASHES)], "symbol": SYMBOLS[number % len(SYMBOLS)]}
        _band(figure, knob, COLOURS[number % len(COLOURS)], f"{model}, 95 % interval", **looks)
    if natural is not None:
        _marks(figure, natural[natural["model"] == models[0]])
    return laid_out(
        figure, title, xaxis={"title": "set value of the knob (the model's own units)", "zeroline": False},
        yaxis={"title": safe(f"share of '{shown}' answers"), "range": [-0.12, 1.05], "tickformat": ".0%"}, height=460,
        legend_below=0.25,
    )  # fmt: skip


def _band(
    figure: go.Figure, rows: pd.DataFrame, colour: str, name: str, dash: str = "solid", symbol: str = "circle"
) -> None:
    """A line with a filled band; both leave the figure together when their legend entry is clicked."""
    x = rows["value"].tolist()
    figure.add_scatter(**band(x, rows["low"], rows["high"], translucent(colour), showlegend=False, legendgroup=name))
    figure.add_scatter(
        x=x,
        y=rows["share"].tolist(),
        mode="lines+markers",
        line={"color": colour, "dash": dash},
        marker={"symbol": symbol, "size": 7},
        name=name,
        legendgroup=name,
        customdata=rows[["low", "high"]].to_numpy().tolist(),
        hovertemplate=(
            "set to %{x:.3g}: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]<extra>%{fullData.name}</extra>"
        ),
    )


def _marks(figure: go.Figure, natural: pd.DataFrame) -> None:
    """One tick per row, in the colour of its intent, below the zero line."""
    for number, (intent, rows) in enumerate(natural.groupby("intent", sort=False)):
        figure.add_scatter(
            x=rows["value"].tolist(),
            y=[-0.04 - 0.04 * number] * len(rows),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 9, "color": COLOURS[-1 - number]},
            name=safe(f"natural, '{intent}'"),
            hovertemplate="natural coordinate %{x:.3g}<extra>" + safe(str(intent)) + "</extra>",
        )


def natural_spread(natural: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Where the models put the coordinate by themselves: one violin per model and intent, every row as a point.

    ``natural`` has columns model, intent, value.
    """
    figure = go.Figure()
    for number, (intent, rows) in enumerate(natural.groupby("intent", sort=False)):
        figure.add_violin(
            x=rows["value"].tolist(), y=rows["model"].astype(str).tolist(), orientation="h", points="all", jitter=0.4,
            pointpos=0, box={"visible": False}, meanline={"visible": True}, name=safe(f"asked for '{intent}'"),
            line={"color": COLOURS[number % len(COLOURS)]},
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 5},
            hoveron="points", hovertemplate="%{y}: %{x:.3g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    return laid_out(
        figure, title, violinmode="overlay", height=180 + 110 * natural["model"].nunique(), legend_below=0.3,
        x="natural coordinate at the last prompt token (the model's own units)",
        yaxis={"title": "", "categoryorder": "array", "categoryarray": list(natural["model"].unique())[::-1]},
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
    )  # fmt: skip
