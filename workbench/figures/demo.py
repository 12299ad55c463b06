"""Base, tuned, steered and random stand-ins side by side, one row per behaviour and recipe."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

_LOOKS = {
    "base": ("base", "#666666", "circle-open"),
    "tuned": ("tuned", "#0072B2", "circle"),
    "control": ("random stand-ins", "#E69F00", "x"),
    "steered": ("with the recipe", "#D55E00", "diamond"),
}
"""Column -> (name, colour after Okabe and Ito, symbol); the symbol tells them apart without colour."""


def demo_figure(table: pd.DataFrame) -> go.Figure:
    """Dots with 95 % intervals; ``table`` has behaviour, recipe, n and, for each of base, tuned, steered and control,
    the share of prompts with its ``_low`` and ``_high``."""
    rows = [f"{row['behaviour']}<br><i>{row['recipe']}</i>" for _, row in table.iterrows()]
    figure = go.Figure()
    for place, (column, (name, colour, symbol)) in enumerate(_LOOKS.items()):
        share, low, high = (100 * table[f"{column}{end}"] for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=share.tolist(), y=[number + 0.12 * (place - 1.5) for number in range(len(rows))],
            name=name, mode="markers", marker=dict(color=colour, symbol=symbol, size=9),
            error_x=dict(
                type="data", symmetric=False, array=(high - share).tolist(), arrayminus=(share - low).tolist(),
                thickness=1.2, width=3,
            ),
            customdata=[[*numbers] for numbers in zip(low, high, table["n"], strict=True)],
            hovertemplate=name + " %{x:.0f} % [%{customdata[0]:.0f}, %{customdata[1]:.0f}], n = %{customdata[2]}"
            "<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=150 + 52 * len(rows), margin=dict(l=330, r=20, t=30, b=60),
        xaxis=dict(title=dict(text="share of prompts, %, with 95 % interval"), range=[-4, 104]),
        yaxis=dict(tickvals=list(range(len(rows))), ticktext=rows, range=[len(rows) - 0.5, -0.5], zeroline=False),
        legend=dict(orientation="h", y=1.0, yanchor="bottom"),
    )  # fmt: skip
    return figure
