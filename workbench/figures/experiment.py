"""Numbers over the cells of a grid, and over the strengths of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.behaviour import COLOURS

RANDOM = "random "
GREY = "#7f7f7f"
_DASHES = ("solid", "dash", "dot", "dashdot")


def grid_figure(table: pd.DataFrame, cells: Mapping[int, str], title: str = "") -> go.Figure:
    """One panel per metric, one row per cell, one colour per model; random stand-ins are grey.

    ``table``: cell, of, strength, metric, estimate, low, high, n. ``cells``: number -> its settings in words.
    """
    metrics = list(dict.fromkeys(table["metric"]))
    models = list(dict.fromkeys(_named(row) for _, row in table.iterrows()))
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True)
    for place, metric in enumerate(metrics, start=1):
        part = table[table["metric"] == metric]
        for number, model in enumerate(models):
            rows = part[[_named(row) == model for _, row in part.iterrows()]]
            figure.add_trace(
                go.Scatter(
                    x=rows["estimate"], y=[cells[int(cell)] for cell in rows["cell"]], mode="markers", name=model,
                    legendgroup=model, showlegend=place == 1, error_x=_bars(rows), customdata=_hover(rows),
                    marker={"size": 9, **_look(model, number)}, hovertemplate=f"%{{y}}<br>{_TOLD}",
                ),
                row=1, col=place,
            )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True)
    height = 200 + 24 * len(cells) * max(1, len(models) // 3)
    figure.update_layout(
        title=title, template="plotly_white", height=min(height, 1600), legend={"orientation": "h", "y": -0.2},
        scattermode="group",
    )  # fmt: skip
    return figure


def dose_figure(table: pd.DataFrame, cells: Mapping[int, str], title: str = "") -> go.Figure:
    """One panel per metric: the estimate against the strength, with its interval; random stand-ins grey.

    Columns as for :func:`grid_figure`. Base and tuned are horizontal lines. A line per cell, told apart by its dash.
    """
    metrics = list(dict.fromkeys(table["metric"]))
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics)
    for place, metric in enumerate(metrics, start=1):
        for (cell, model), rows in table[table["metric"] == metric].groupby(["cell", "of"], sort=False):
            number = list(cells).index(int(str(cell)))
            if rows["strength"].isna().all():
                _level(figure, str(model), float(rows["estimate"].iloc[0]), place)
                continue
            name = str(model) if len(cells) == 1 else f"{model} ({cells[int(str(cell))]})"
            look = _look(str(model), 1 + number)
            ordered = rows.sort_values("strength")
            figure.add_trace(
                go.Scatter(
                    x=ordered["strength"], y=ordered["estimate"], mode="lines+markers", name=name, legendgroup=name,
                    showlegend=place == 1, error_y=_bars(ordered), customdata=_hover(ordered), marker=look,
                    line={"color": look["color"], "dash": _DASHES[number % len(_DASHES)]},
                    hovertemplate=f"strength %{{x:g}}<br>{_TOLD_Y}",
                ),
                row=1, col=place,
            )  # fmt: skip
    figure.update_xaxes(title={"text": "strength"})
    figure.update_layout(title=title, template="plotly_white", height=420, legend={"orientation": "h", "y": -0.25})
    return figure


_TOLD = (
    "%{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<br>n = %{customdata[2]:.0f}<extra>%{fullData.name}</extra>"
)
_TOLD_Y = _TOLD.replace("%{x:", "%{y:")


def _level(figure: go.Figure, model: str, value: float, place: int) -> None:
    colour = COLOURS[0] if model == "base" else "#000000"
    figure.add_hline(
        y=value, line={"color": colour, "dash": "dot", "width": 1}, annotation_text=model,
        annotation_font={"size": 10, "color": colour}, row=1, col=place,
    )  # fmt: skip


def _named(row: Any) -> str:
    strength = row["strength"]
    return str(row["of"]) if pd.isna(strength) or strength == 1 else f"{row['of']} x{strength:g}"


def _look(model: str, number: int) -> dict[str, Any]:
    if model.startswith(RANDOM):
        return {"color": GREY, "symbol": "circle-open"}
    return {"color": COLOURS[number % len(COLOURS)], "symbol": "circle"}


def _bars(rows: pd.DataFrame) -> dict[str, Any]:
    high, low = rows["high"] - rows["estimate"], rows["estimate"] - rows["low"]
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1}


def _hover(rows: pd.DataFrame) -> Any:
    return rows[["low", "high", "n"]].to_numpy()
