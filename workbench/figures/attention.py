"""One head's attention pattern in both models and their difference, on shared scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.cells import COLOURS, bar_title
from workbench.figures.layout import laid_out
from workbench.figures.tokens import escaped, safe, shortened, visible

LETTERS = 10
MOST_LABELLED = 48
"""With more tokens than this the axes are numbered."""


def attention_panels(
    base: np.ndarray,
    tuned: np.ndarray,
    tokens: Sequence[str],
    *,
    title: str = "",
    names: tuple[str, str] = ("base", "tuned"),
) -> go.Figure:
    """Three maps [query, key] with queries down and keys across: base and tuned on one scale from 0 to 1, and
    tuned - base on a scale centred at 0. Keys after the query, which causality hides, are left blank.
    """
    hidden = np.triu(np.ones(base.shape, bool), 1) & (np.abs(base) + np.abs(tuned) == 0)
    change = tuned - base
    bound = float(np.abs(change).max(initial=0.0)) or 1.0
    panels = [
        (names[0], base, "Blues", 0.0, 1.0), (names[1], tuned, "Blues", 0.0, 1.0),
        (f"{names[1]} - {names[0]}", change, COLOURS, -bound, bound),
    ]  # fmt: skip
    figure = make_subplots(
        cols=3, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[1, 1, 1],
        subplot_titles=[safe(name) for name, *_ in panels],
    )  # fmt: skip
    texts = _told(base, tuned, tokens, names)
    for place, (_, values, colours, low, high) in enumerate(panels, start=1):
        bar = None if place == 2 else {"x": 1.0 if place == 1 else 1.1, "thickness": 14}
        figure.add_heatmap(
            z=np.where(hidden, np.nan, values).tolist(), text=texts, hovertemplate="%{text}<extra></extra>",
            colorscale=colours, zmin=low, zmax=high, xgap=1, ygap=1, showscale=bar is not None,
            colorbar={"title": bar_title("attention weight" if place == 1 else "change of the weight"), **(bar or {})},
            row=1, col=place,
        )  # fmt: skip
    _axes(figure, tokens)
    height = 230 + min(620, max(180, 20 * len(tokens)))
    return laid_out(figure, title, height=height, margin={"l": 80, "r": 20, "t": 80, "b": 90})


def _told(base: np.ndarray, tuned: np.ndarray, tokens: Sequence[str], names: tuple[str, str]) -> list[list[str]]:
    shown = [escaped(visible(token)) for token in tokens]
    first, other = (safe(name) for name in names)
    return [
        [
            f"from {row} {shown[row]} to {column} {shown[column]}<br>{first} {base[row, column]:.3f}, "
            f"{other} {tuned[row, column]:.3f}, change {tuned[row, column] - base[row, column]:+.3f}"
            for column in range(base.shape[1])
        ]
        for row in range(base.shape[0])
    ]


def _axes(figure: go.Figure, tokens: Sequence[str]) -> None:
    """Tokens by place, so that repeated ones stay apart; queries read downwards."""
    if len(tokens) <= MOST_LABELLED:
        words = [escaped(shortened(visible(token), LETTERS)) for token in tokens]
        ticks = {"tickmode": "array", "tickvals": list(range(len(tokens))), "ticktext": words}
        figure.update_xaxes(**ticks, tickangle=-60)
        figure.update_yaxes(**ticks)
    figure.update_xaxes(title_text="key (attended to)")
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="query (attends)", col=1)
