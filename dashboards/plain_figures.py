"""Figures that load nothing: only traces drawn here, no pictures and no maps, whoever wrote the figure."""

from __future__ import annotations

import plotly.graph_objects as go

from workbench.errors import UserError

TRACES = frozenset({
    "bar", "box", "contour", "heatmap", "histogram", "histogram2d", "indicator", "pie", "sankey", "scatter",
    "scatter3d", "scattergl", "splom", "sunburst", "surface", "table", "treemap", "violin", "waterfall",
})  # fmt: skip
"""Kinds of plotly traces that fetch nothing; maps and geographies fetch tiles and shapes from anywhere."""


def without_fetching(figure: go.Figure, name: str) -> go.Figure:
    """``figure`` itself, its pictures taken away.

    Raises:
        UserError: a trace of it is of a kind that would fetch something (a map, a picture).
    """
    for kind in (trace.type for trace in figure.data):
        if kind not in TRACES:
            raise UserError(f"The figure {name} holds a {kind}, which can load things from elsewhere; it is not shown.")
    figure.layout.images = []
    return figure
