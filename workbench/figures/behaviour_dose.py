"""Dose and response: behaviour against strength with its band, the random recipes' band, and what else moved."""

from __future__ import annotations

import textwrap

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.intervals import band, translucent

COLOUR, SIDE, GREY = "#0072B2", "#D55E00", "#7f7f7f"


def dose_figure(
    table: pd.DataFrame, *, metric: str, side: str = "", start: float | None = None, title: str = ""
) -> go.Figure:
    """``table``: strength, estimate, low, high, n; where given control, side and side_control with ``_low``, ``_high``.

    Blue with its 95 % interval over prompts; grey the mean and 95 % range of random recipes; dotted the model as it is.
    """
    has_side = "side" in table
    figure = make_subplots(
        rows=2 if has_side else 1, cols=1, shared_xaxes=True, vertical_spacing=0.08,
        row_heights=[0.65, 0.35] if has_side else None,
    )  # fmt: skip
    if "control" in table:
        _band(figure, table, "control", GREY, "random recipes, 95 % range", 1)
    _band(figure, table.rename(columns={"low": "estimate_low", "high": "estimate_high"}), "estimate", COLOUR, metric, 1)
    if start is not None:
        figure.add_hline(y=start, line={"dash": "dot", "color": "#333333"}, row=1, col=1)
    if has_side:
        if "side_control" in table:
            _band(figure, table, "side_control", GREY, "random recipes, side effect", 2)
        _band(figure, table, "side", SIDE, side, 2)
        figure.update_yaxes(title={"text": _broken(side)}, row=2, col=1)
    figure.update_yaxes(title={"text": _broken(metric, 34)}, row=1, col=1)
    figure.update_xaxes(title={"text": "strength (times the recipe's own)"}, row=2 if has_side else 1, col=1)
    heading = title or f"Dose and response, n = {int(table['n'].max())} prompts; dotted: the model as it is"
    figure.update_layout(
        title={"text": heading, "font": {"size": 13}}, height=560 if has_side else 400, template="plotly_white",
        legend={"orientation": "h", "y": -0.18},
    )  # fmt: skip
    return figure


def _band(figure: go.Figure, table: pd.DataFrame, column: str, colour: str, name: str, row: int) -> None:
    x = table["strength"].tolist()
    low, high = table[f"{column}_low"].tolist(), table[f"{column}_high"].tolist()
    figure.add_scatter(**band(x, low, high, translucent(colour), showlegend=False, legendgroup=name), row=row, col=1)
    figure.add_scatter(
        x=x, y=table[column].tolist(), mode="lines+markers", name=name, legendgroup=name,
        line={"color": colour, "dash": "dot" if colour == GREY else "solid"},
        customdata=[list(pair) for pair in zip(low, high, strict=True)],
        hovertemplate="strength %{x:.3g}: %{y:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]"
        "<extra>%{fullData.name}</extra>",
        row=row, col=1,
    )  # fmt: skip


def _broken(text: str, width: int = 24) -> str:
    """In lines of about ``width`` letters, so that titles of two axes do not run into each other."""
    return "<br>".join(textwrap.wrap(text, width, break_long_words=False)) or text
