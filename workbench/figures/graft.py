"""How much of a skill a graft carries, against its size."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.cells import short_name
from workbench.figures.intervals import band
from workbench.figures.knob import COLOURS, GREY
from workbench.figures.layout import laid_out
from workbench.figures.tokens import safe


def sparsity_curve(
    curve: pd.DataFrame, *, base: float, tuned: float, share: float | None = None, metric: str = "accuracy",
    title: str = "",
) -> go.Figure:  # fmt: skip
    """``metric`` against the share of weights grafted (logarithmic), with interval and controls.

    ``curve`` has columns sparsity, ``metric``, and for the accuracy also low, high, movement, random, random_low,
    random_high. Dashed lines mark the base's and the tuned model's value, a dotted one the ``chosen`` size.
    """
    rows = curve.sort_values("sparsity")
    x = rows["sparsity"].tolist()
    figure = go.Figure()
    if metric == "accuracy":
        figure.add_scatter(
            **band(x, rows["random_low"], rows["random_high"], "rgba(127,127,127,0.25)", showlegend=False)
        )
        figure.add_scatter(
            x=x, y=rows["random"].tolist(), name="random masks (range)", mode="lines+markers", line=dict(color=GREY)
        )
        figure.add_scatter(
            x=x, y=rows["movement"].tolist(), name="moved most", line=dict(color=COLOURS[1], dash="dash"),
            mode="lines+markers", marker=dict(symbol="square"),
        )  # fmt: skip
        figure.add_scatter(**band(x, rows["low"], rows["high"], "rgba(0,114,178,0.18)", showlegend=False))
    figure.add_scatter(
        x=x, y=rows[metric].tolist(), name="graft, 95 % interval", mode="lines+markers", line=dict(color=COLOURS[0]),
        customdata=_told(rows, metric), hovertemplate="%{customdata[0]}<extra></extra>",
    )  # fmt: skip
    for value, name in ((base, "base"), (tuned, "tuned")):
        figure.add_hline(y=value, line=dict(dash="dash", width=1), annotation=dict(text=name))
    if share is not None and share > 0:
        figure.add_vline(x=share, line=dict(dash="dot", width=1))
    return laid_out(
        figure, title, legend_below=0.25,
        xaxis=dict(
            title=dict(text="share of the eligible weights grafted (logarithmic)"), type="log", tickformat=".1~p",
            tickangle=0, **({"tickvals": x} if len(x) <= 8 else {"dtick": 1}),
        ),
        y=metric.replace("_", " "),
    )  # fmt: skip


def _told(rows: pd.DataFrame, metric: str) -> list[list[str]]:
    """What the pointer shows: size, value, and where measured interval, control and number of prompts."""
    lines = []
    for row in rows.to_dict("records"):
        text = f"{row['sparsity']:.3%} of the weights<br>{metric} {row[metric]:.3f}"
        if metric == "accuracy":
            text += f", 95 % interval {row['low']:.3f} to {row['high']:.3f}<br>random masks {row['random']:.3f} "
            text += f"({row['random_low']:.3f} to {row['random_high']:.3f}), moved most {row['movement']:.3f}"
        lines.append([text + (f"<br>n = {row['n']:.0f} prompts" if "n" in row else "")])
    return lines


def variants_figure(models: pd.DataFrame, *, metric: str = "accuracy", title: str = "") -> go.Figure:
    """Base, tuned, graft, complement and controls as dots with intervals, one line each.

    ``models``: model, ``metric``, low, high, entries (weights that come from the tuned model), n.
    """
    rows = models[models[metric].notna()].reset_index(drop=True)
    names = [safe(short_name(str(name))) for name in rows["model"]]
    error = {}
    if metric == "accuracy":
        error = {"error_x": {"type": "data", "symmetric": False, "array": (rows["high"] - rows[metric]).tolist(),
                             "arrayminus": (rows[metric] - rows["low"]).tolist(), "thickness": 1.5}}  # fmt: skip
    figure = go.Figure(go.Scatter(
        x=rows[metric].tolist(), y=rows.index.tolist(), mode="markers",
        marker={"size": 11, "color": [_LOOKS.get(str(name), (GREY, "x"))[0] for name in rows["model"]],
                "symbol": [_LOOKS.get(str(name), (GREY, "x"))[1] for name in rows["model"]]},
        customdata=[[_variant(row, metric)] for row in rows.to_dict("records")],
        hovertemplate="%{customdata[0]}<extra></extra>", **error,
    ))  # fmt: skip
    return laid_out(
        figure, title, height=150 + 34 * len(rows), margin={"l": 140, "r": 20, "t": 60, "b": 60},
        x=f"{metric.replace('_', ' ')}, 95 % interval over prompts (random: range of the draws)",
        yaxis={"autorange": "reversed", "tickmode": "array", "tickvals": rows.index.tolist(), "ticktext": names,
               "automargin": True},
    )  # fmt: skip


_LOOKS = {
    "base": ("#666666", "circle-open"), "tuned": ("#0072B2", "circle"), "graft": ("#D55E00", "diamond"),
    "complement": ("#CC79A7", "square"), "all eligible": ("#009E73", "triangle-up"),
    "movement only": ("#E69F00", "triangle-down"),
}  # fmt: skip


def _variant(row: dict[Any, Any], metric: str) -> str:
    text = f"<b>{safe(str(row['model']))}</b><br>{row['entries']:.0f} weights from the tuned model"
    text += f"<br>{metric} {row[metric]:.3f}"
    if metric == "accuracy":
        text += f", {row['low']:.3f} to {row['high']:.3f}"
    return text if pd.isna(row.get("n")) else f"{text}<br>n = {row['n']:.0f} prompts"
