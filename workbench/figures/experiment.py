"""Numbers over the cells of a grid, and over the strengths of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.behaviour import COLOURS
from workbench.figures.intervals import whiskers

RANDOM = "random "
GREY = "#7f7f7f"
_DASHES = ("solid", "dash", "dot", "dashdot")


def grid_figure(table: pd.DataFrame, cells: Mapping[int, str], title: str = "") -> go.Figure:
    """One panel per metric, one row per model and cell; a recipe's random stand-ins are the grey rings on its row.

    ``table``: cell, of, strength, metric, estimate, low, high, n. ``cells``: number -> its settings in words. Base and
    tuned have one row where all cells agree on them.
    """
    shown = _rows(table, cells)
    metrics, rows = list(dict.fromkeys(shown["metric"])), list(dict.fromkeys(shown["row"]))
    models = [model for model in dict.fromkeys(shown["model"]) if not model.startswith(RANDOM)]
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True)
    for place, metric in enumerate(metrics, start=1):
        for model, part in shown[shown["metric"] == metric].groupby("model", sort=False):
            look = _look(str(model), 0 if str(model).startswith(RANDOM) else models.index(str(model)))
            figure.add_trace(
                go.Scatter(
                    x=part["estimate"], y=part["row"], mode="markers", name=str(model), showlegend=False,
                    error_x=whiskers(part, "estimate", thickness=1, color=look["color"]), customdata=_hover(part),
                    marker={"size": 9, **look}, hovertemplate=f"%{{y}}<br>{_TOLD}",
                ),
                row=1, col=place,
            )  # fmt: skip
    figure.update_yaxes(automargin=True, categoryorder="array", categoryarray=rows[::-1])
    figure.update_layout(title=title, template="plotly_white", height=min(150 + 26 * len(rows), 1600))
    return figure


def _rows(table: pd.DataFrame, cells: Mapping[int, str]) -> pd.DataFrame:
    """``table`` with ``model`` (its name) and ``row`` (the text on the axis)."""
    shown = table.assign(model=[_named(row) for _, row in table.iterrows()])
    for side in ("base", "tuned"):
        own = shown[shown["model"] == side]
        if len(cells) > 1 and not own.duplicated(["metric", "estimate", "low", "high"], keep=False).all():
            continue  # the cells differ in it, or there is none
        shown = shown.drop(own[own.duplicated("metric")].index)
    once = {side for side in ("base", "tuned") if len(shown[shown["model"] == side]) <= shown["metric"].nunique()}
    texts = []
    for model, cell in zip(shown["model"], shown["cell"], strict=True):
        name = model.removeprefix(RANDOM)
        texts.append(name if len(cells) == 1 or name in once else f"{name} | {cells[int(cell)]}")
    ordered = shown.assign(row=texts)
    order = {name: place for place, name in enumerate(dict.fromkeys(m.removeprefix(RANDOM) for m in ordered["model"]))}
    key = ordered["model"].map(lambda model: order[model.removeprefix(RANDOM)])
    return ordered.assign(key=key).sort_values(["key", "cell"], kind="stable").drop(columns="key")


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
                    showlegend=place == 1, error_y=whiskers(ordered, "estimate", thickness=1),
                    customdata=_hover(ordered), marker=look,
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


def _hover(rows: pd.DataFrame) -> Any:
    return rows[["low", "high", "n"]].to_numpy()
