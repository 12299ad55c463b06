"""Figures of activation patching: heads, layer by position for each site, and the best heads patched at once."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.errors import UserError
from workbench.figures.cells import Axes, bound_of, cell_heatmap, cell_traces
from workbench.figures.heads import head_heatmap
from workbench.figures.layout import laid_out
from workbench.figures.tokens import visible


def patch_heatmap(
    table: pd.DataFrame,
    *,
    title: str = "Patching",
    score: str = "score",
    tokens: Sequence[str] | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Layer by head; or layer by position, one panel per ``module``, on one colour scale."""
    if "head" in table and "position" not in table:
        return head_heatmap(table, title=title, score=score, limit=limit)
    if "position" not in table:
        return cell_heatmap(table, Axes("layer", "module", "L{row:.0f} {column}", score), title=title, limit=limit)
    return _by_position(table, title, score, tokens, limit)


def _by_position(
    table: pd.DataFrame, title: str, score: str, tokens: Sequence[str] | None, limit: float | None
) -> go.Figure:
    panels = _panels(table)
    axes = Axes("layer", "position", "layer {row:.0f}, position {column:.0f}", score)
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels), shared_yaxes=True)
    bound = limit or bound_of(table)
    height = 190 + 28 * max(6, table["layer"].nunique())
    for column, part in enumerate(panels.values(), 1):
        for trace in cell_traces(part, axes, bound, height, colorbar=column == len(panels)):
            figure.add_trace(trace, row=1, col=column)
    places = sorted(table["position"].unique())
    if len(places) == 1:
        figure.update_xaxes(tickvals=places)
    if tokens is not None and places[0] >= 0:
        shown = [f"{place} {html.escape(visible(tokens[int(place)]))}" for place in places]
        figure.update_xaxes(tickvals=places, ticktext=shown, tickangle=-60)
    figure.update_xaxes(title=dict(text="position"))
    figure.update_yaxes(title=dict(text="layer"), col=1, dtick=1 if table["layer"].nunique() <= 40 else None)
    return laid_out(
        figure, title, height=height, showlegend=False, margin=dict(l=60, r=20, t=90, b=80), hovermode="closest",
        hoverdistance=-1,
    )  # fmt: skip


def _panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if "module" in table:
        return {str(name): part for name, part in table.groupby("module", sort=False)}
    return {f"head {head}": part for head, part in table.groupby("head")}


def together_lines(
    table: pd.DataFrame | None, *, title: str = "Heads patched at once", score: str = "score"
) -> go.Figure:
    """Score against the number of heads patched together, beside random heads."""
    from workbench.figures.experts import count_lines

    if table is None:
        raise UserError(
            "This result patched no heads together: run it with sites='heads', positions='all', together=8."
        )
    return count_lines(table, title=title, x="heads patched", y=score, control="random heads of the same layers")
