"""Training rows by rank of influence."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe


def influence_figure(table: pd.DataFrame, *, title: str) -> go.Figure:
    """A point per training row, highest score first, and the control as a line.

    Args:
        table: row, score, low, high, control, q, text.
        title: Above the figure.
    """
    rows = table.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(1, len(rows) + 1)),
        y=rows["score"].tolist(),
        mode="markers",
        marker={"color": ["#D55E00" if q < 0.05 else "#bbbbbb" for q in rows["q"]], "size": 6},
        customdata=[
            [int(row["row"]), row["low"], row["high"], row["q"], safe(str(row["text"]))]
            for row in rows.to_dict("records")
        ],
        hovertemplate=(
            "row %{customdata[0]}: %{y:.3g} [%{customdata[1]:.3g}, %{customdata[2]:.3g}], q = %{customdata[3]:.2g}<br>"
            "%{customdata[4]}<extra></extra>"
        ),
        name="training row (grey: not told from random rows)",
    )
    figure.add_scatter(
        x=list(range(1, len(rows) + 1)),
        y=rows["control"].tolist(),
        mode="lines",
        line={"color": "#0072B2", "dash": "dot"},
        hoverinfo="skip",
        name="random rows as queries",
    )
    return laid_out(figure, title, x="rank", y="influence", legend_below=0.25)
