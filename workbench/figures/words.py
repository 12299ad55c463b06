"""Tokens that a vector raises and lowers, in one panel per model, on one scale."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.intervals import whiskers
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe, shortened, visible

RAISED, LOWERED, GREY = "#B2182B", "#2166AC", "#bbbbbb"
LETTERS = 16


def word_bars(table: pd.DataFrame, *, title: str = "", unit: str = "change of the logit") -> go.Figure:
    """Bars of ``score`` with intervals; a black line per bar is the range of the control.

    ``table``: model, token, score, low, high, control_low, control_high, q. Bars inside the control's range are grey.
    Tokens are placed by rank, so that two that look alike stay apart.
    """
    models = list(dict.fromkeys(table["model"]))
    figure = make_subplots(
        cols=len(models), shared_xaxes="all", horizontal_spacing=0.18, subplot_titles=[safe(m) for m in models]
    )
    longest = 1
    for column, model in enumerate(models, start=1):
        rows = table[table["model"] == model].sort_values("score").reset_index(drop=True)
        longest = max(longest, len(rows))
        inside = rows["score"].between(rows["control_low"], rows["control_high"])
        colours = [
            GREY if grey else RAISED if score > 0 else LOWERED
            for grey, score in zip(inside, rows["score"], strict=True)
        ]
        bands = rows[["control_low", "control_high"]].to_numpy()
        figure.add_bar(
            x=rows["score"].tolist(), y=rows.index.tolist(), orientation="h", marker={"color": colours},
            error_x=whiskers(rows, thickness=1, width=2),
            customdata=[[_told(row)] for row in rows.to_dict("records")],
            hovertemplate="%{customdata[0]}<extra></extra>", showlegend=False, row=1, col=column,
        )  # fmt: skip
        figure.add_scatter(
            x=[edge for row in bands.tolist() for edge in (*row, None)],
            y=[place for place in rows.index for _ in range(3)], mode="lines", line={"color": "black", "width": 4},
            hoverinfo="skip", name="random writes, 95 %", showlegend=column == 1, row=1, col=column,
        )  # fmt: skip
        words = [html.escape(shortened(visible(token), LETTERS)) for token in rows["token"]]
        figure.update_yaxes(tickmode="array", tickvals=rows.index.tolist(), ticktext=words, row=1, col=column)
    figure.update_xaxes(title_text=unit, zeroline=True, zerolinecolor="#888888")
    return laid_out(
        figure, title, height=190 + 21 * longest, margin={"l": 120, "r": 20, "t": 80, "b": 60}, legend_below=0.2,
    )  # fmt: skip


def _told(row: dict) -> str:
    return (
        f"<b>{html.escape(visible(str(row['token'])))}</b> {row['score']:+.3g}<br>95 % interval {row['low']:+.3g} to "
        f"{row['high']:+.3g}<br>random writes {row['control_low']:+.3g} to {row['control_high']:+.3g}<br>"
        f"q = {row['q']:.2g}, n = {row['n']:.0f}"
    )
