"""The scope panel: how often behaviour changed in scope, near it and out of it."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.behaviour import COLOURS
from workbench.figures.intervals import whiskers


def scope_figure(table: pd.DataFrame, *, changed: str = "", title: str = "") -> go.Figure:
    """One bar per set of prompts and recipe, with its 95 % interval; grey dashes: mean and range of random recipes.

    ``table``: recipe, scope, rate, estimate, low, high, n, and where there is a control control, control_low,
    control_high. A bar inside the control's range is pale: it cannot be told from a random recipe.
    """
    figure = go.Figure()
    for number, (recipe, rows) in enumerate(table.groupby("recipe", sort=False)):
        pale = [0.35 if _inside(row) else 0.95 for _, row in rows.iterrows()]
        figure.add_bar(
            x=_places(rows),
            y=rows["estimate"].tolist(),
            name=escape(str(recipe), quote=False),
            marker={"color": COLOURS[1 + number % (len(COLOURS) - 1)], "opacity": pale},
            error_y=whiskers(rows, "estimate"),
            offsetgroup=str(number),
            text=[f"{value:.0%}" for value in rows["estimate"]],
            textposition="auto",
            customdata=[_told(row) for _, row in rows.iterrows()],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        if "control" in rows:
            _control(figure, rows, number)
    figure.update_layout(
        title={"text": title or "Share of prompts whose behaviour changed", "font": {"size": 14}},
        yaxis={"title": f"share changed ({escape(changed, quote=False)})" if changed else "share changed",
               "range": [-0.03, 1.05], "tickformat": ".0%"},
        height=440, template="plotly_white", barmode="group", legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    return figure


def _control(figure: go.Figure, rows: pd.DataFrame, number: int) -> None:
    """The random recipes beside the bar they belong to: as a bar without filling, so that plotly places it."""
    figure.add_bar(
        x=_places(rows),
        y=rows["control"].tolist(),
        name="random recipes, 95 % range",
        showlegend=number == 0,
        marker={"color": "#bbbbbb"},
        error_y=whiskers(rows, "control", "control_low", "control_high"),
        offsetgroup=f"{number} control",
        hovertemplate="random recipes: %{y:.1%}<extra></extra>",
    )  # fmt: skip


def _places(rows: pd.DataFrame) -> list[str]:
    return [f"{escape(scope)}<br>({escape(rate)})" for scope, rate in zip(rows["scope"], rows["rate"], strict=True)]


def _inside(row: pd.Series) -> bool:
    return "control" in row and bool(row["control_low"] <= row["estimate"] <= row["control_high"])


def _told(row: pd.Series) -> str:
    said = f"{row['estimate']:.1%} [{row['low']:.1%}, {row['high']:.1%}], n = {int(row['n'])}"
    if "control" in row:
        said += f"<br>random {row['control']:.1%} [{row['control_low']:.1%}, {row['control_high']:.1%}]"
        said += "<br>not told from the control" if _inside(row) else ""
    return said
