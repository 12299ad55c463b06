"""The look that the figures share."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from workbench.figures.tokens import safe


def laid_out(
    figure: go.Figure, title: str, *, height: int | None = 420, x: str = "", y: str = "",
    legend_below: float | None = None, **layout: Any,
) -> go.Figure:  # fmt: skip
    """``figure`` on white with its title and the titles of its axes.

    Args:
        figure: Its traces are there.
        title: Of anyone's making: nothing in it is markup.
        height: In pixels; None: plotly's.
        x: Title of the horizontal axis.
        y: Title of the vertical one.
        legend_below: How far below the axes the legend lies, as a share of their height; None: where plotly puts it.
        layout: Anything else, as ``update_layout`` takes it.

    Returns:
        The same figure.
    """
    axes = {name: {"title": text} for name, text in (("xaxis", x), ("yaxis", y)) if text}
    legend = {} if legend_below is None else {"legend": {"orientation": "h", "y": -legend_below}}
    return figure.update_layout(
        template="plotly_white", title={"text": safe(title), "font": {"size": 15}}, height=height, **axes, **legend,
        **layout,
    )  # fmt: skip
