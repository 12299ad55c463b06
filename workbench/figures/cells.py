"""One heatmap for every map of cells: diverging colours centred at 0, cells inside the control band greyed, every cell
clickable, interval and control under the pointer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe, visible_line
from workbench.tables import beyond_control

COLOURS = "RdBu_r"
GREY = "rgb(160, 160, 160)"
GREY_OPACITY = 0.75
"""How much of a greyed cell's colour is covered: it stays to be seen."""
LONGEST_NAME = 32
"""Letters of a name on an axis; the pointer shows all of it."""
_TEMPLATE = "%{text}<extra></extra>"
BAR_LINE = 24
"""Letters to a line of a colour bar's title, which stands beside the bar."""
MAX_MARKERS = 20_000
"""Above this many cells the clickable overlay would slow a browser down; the heatmap's own hover remains."""


@dataclass(frozen=True)
class Axes:
    """Which columns span the map, and what a cell is called."""

    row: str
    column: str
    label: str
    """A format of row and column, such as ``L{row}H{column}``."""
    score: str
    """What the colour means."""


def grid(table: pd.DataFrame, axes: Axes, value: str) -> pd.DataFrame:
    """``value`` as a table of ``axes.row`` by ``axes.column``; cells without a value are NaN."""
    return table.pivot(index=axes.row, columns=axes.column, values=value).sort_index().sort_index(axis=1)


def inside_band(table: pd.DataFrame) -> pd.Series:
    """True where the score is not beyond its control: inside the control's band, or where there is none, by its q
    (:func:`workbench.tables.beyond_control`), also where it has none."""
    if {"control_low", "control_high"} <= set(table):
        return table["score"].between(table["control_low"], table["control_high"])
    if "q" not in table:
        return pd.Series(False, index=table.index)
    return ~beyond_control(table) | table["q"].isna()


def bound_of(table: pd.DataFrame) -> float:
    """The limit of a colour scale centred at 0 that holds every score."""
    return float(np.nanmax(np.abs(table["score"].to_numpy(dtype=float)), initial=0.0)) or 1.0


def cell_heatmap(table: pd.DataFrame, axes: Axes, *, title: str = "", limit: float | None = None) -> go.Figure:
    """A heatmap of ``table`` (shared columns: score, low, high, control, q).

    ``limit`` fixes the colour scale to [-limit, limit], so that two maps can be compared. The markers carry
    ``customdata`` [[row, column], ...] as plain lists for click handlers.
    """
    rows, columns = table[axes.row].nunique(), table[axes.column].nunique()
    height = int(np.clip(28 * rows + 140, 340, 900))
    figure = go.Figure(cell_traces(table, axes, limit or bound_of(table), height))
    laid_out(
        figure, title, height=height, showlegend=False,
        xaxis=dict(title=dict(text=axes.column), dtick=None if columns > 40 else 1, automargin=True),
        yaxis=dict(title=dict(text=axes.row), dtick=None if rows > 40 else 1, automargin=True, zeroline=False),
        margin=dict(l=60, r=20, t=60, b=60), hovermode="closest", hoverdistance=-1,  # the nearest cell's marker
    )  # fmt: skip
    for name, update in ((axes.row, figure.update_yaxes), (axes.column, figure.update_xaxes)):
        if pd.api.types.is_numeric_dtype(table[name]) and len(table):
            update(range=[table[name].min() - 0.5, table[name].max() + 0.5])
        else:
            names = sorted(table[name].unique())
            update(tickmode="array", tickvals=names, ticktext=[safe(short_name(str(name))) for name in names])
    return figure


def short_name(text: str) -> str:
    """A name for an axis: its beginning and its end where it is long, nothing in it invisible."""
    shown = visible_line(text)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME // 2]}…{shown[1 - LONGEST_NAME // 2 :]}"


def mark_cell(figure: go.Figure, row: int | float, column: int | float | str) -> go.Figure:
    """A black frame around one cell of a map whose axes are numbers; returns the same figure."""
    if isinstance(column, str):
        return figure
    return figure.add_shape(
        type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5,
        line=dict(color="black", width=3), fillcolor="rgba(0,0,0,0)",
    )  # fmt: skip


def bar_title(text: str) -> dict[str, Any]:
    """A colour bar's title, broken into lines that fit beside a short bar."""
    lines = textwrap.wrap(text, BAR_LINE, break_long_words=False)
    return dict(text="<br>".join(safe(line) for line in lines), side="right", font=dict(size=12))


def cell_traces(
    table: pd.DataFrame, axes: Axes, bound: float, height: int, *, colorbar: bool = True
) -> list[go.Heatmap | go.Scatter]:
    """The heatmap, the grey over cells that are not beyond their control, and the clickable markers.

    ``bound`` is the limit of the colour scale, ``height`` of the figure in pixels (markers are sized by it).
    """
    scores = grid(table, axes, "score")
    texts, clickable = _texts(table, axes, scores), scores.size <= MAX_MARKERS
    hover: dict[str, Any] = dict(hoverinfo="skip") if clickable else dict(text=texts, hovertemplate=_TEMPLATE)
    traces: list[go.Heatmap | go.Scatter] = [
        go.Heatmap(
            z=scores.to_numpy(), x=list(scores.columns), y=list(scores.index),
            colorscale=COLOURS, zmin=-bound, zmax=bound, zmid=0, showscale=colorbar,
            colorbar=dict(title=bar_title(axes.score)), xgap=1, ygap=1, **hover,
        )
    ]  # fmt: skip
    marked = grid(table.assign(_grey=inside_band(table).where(inside_band(table)).astype(float)), axes, "_grey")
    if marked.notna().to_numpy().any():
        traces.append(
            go.Heatmap(
                z=marked.reindex_like(scores).to_numpy(), x=list(scores.columns), y=list(scores.index),
                colorscale=[[0, GREY], [1, GREY]], showscale=False, opacity=GREY_OPACITY, hoverinfo="skip",
                xgap=1, ygap=1,
            )
        )  # fmt: skip
    if clickable:
        traces.append(_markers(scores, texts, size=max(6.0, (height - 140) / max(1, len(scores.index)) - 4)))
    return traces


def _texts(table: pd.DataFrame, axes: Axes, scores: pd.DataFrame) -> list[list[str]]:
    rows = zip(table.to_dict("records"), inside_band(table), strict=True)
    text_of = {(row[axes.row], row[axes.column]): _told(row, axes, grey=bool(grey)) for row, grey in rows}
    return [[text_of.get((row, column), "") for column in scores.columns] for row in scores.index]


def _told(row: Mapping[Any, Any], axes: Axes, *, grey: bool) -> str:
    def has(*names: str) -> bool:
        return all(name in row and not pd.isna(row[name]) for name in names)

    name = axes.label.format(row=row[axes.row], column=row[axes.column])
    lines = [f"<b>{safe(name)}</b>", f"{safe(axes.score)}: {row['score']:+.3g}"]
    if has("low", "high"):
        lines.append(f"95 % interval {row['low']:+.3g} to {row['high']:+.3g}")
    if has("control"):
        band = f" ({row['control_low']:+.3g} to {row['control_high']:+.3g})" if has("control_low") else ""
        lines.append(f"control {row['control']:+.3g}{band}")
    if has("q"):
        lines.append(f"q = {row['q']:.2g}")
    if has("n"):
        lines.append(f"n = {row['n']:.0f}")
    if grey:
        lines.append("not beyond the control")
    return "<br>".join(lines)


def _markers(scores: pd.DataFrame, texts: list[list[str]], size: float) -> go.Scatter:
    """Invisible squares over the cells: a heatmap cannot be clicked in every app, markers can. They also carry the
    pointer's text, because a marker without one is not clicked either."""
    cells = [[_plain(row), _plain(column)] for row in scores.index for column in scores.columns]
    invisible = dict(marker=dict(opacity=0))
    return go.Scatter(
        x=[column for _, column in cells], y=[row for row, _ in cells], customdata=cells, mode="markers",
        marker=dict(symbol="square", size=size, opacity=0), selected=invisible, unselected=invisible,
        text=[text for line in texts for text in line], hovertemplate=_TEMPLATE,
        hoverlabel=dict(bgcolor="#333333", font=dict(color="white")),
    )  # fmt: skip


def _plain(value: object) -> object:
    return int(value) if isinstance(value, np.integer) else value
