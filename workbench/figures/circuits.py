"""Bars beside their random stand-ins: circuits, masks of heads."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.behaviour import COLOURS
from workbench.figures.intervals import whiskers


def beside_random(
    table: pd.DataFrame, *, name: str, title: str, y: str, floor: str | None = None, group: str | None = None
) -> go.Figure:
    """One bar per ``name`` (a colour per ``group``): ``score`` with ``low`` and ``high``, beside the mean and the range
    of the control's draws; ``floor`` is a column drawn as a line."""
    figure = go.Figure()
    kinds = list(dict.fromkeys(table[group])) if group else [None]
    for number, kind in enumerate(kinds):
        part = table if kind is None else table[table[group] == kind]
        shown, suffix = str(kind) if kind is not None else "chosen heads", "" if kind is None else f" ({kind})"
        figure.add_bar(
            x=part[name], y=part["score"], name=shown, marker_color=COLOURS[(number + 1) % len(COLOURS)],
            offsetgroup=f"{number}", error_y=whiskers(part),
        )  # fmt: skip
        figure.add_bar(
            x=part[name], y=part["control"], name=f"random heads{suffix}", marker_color=COLOURS[0], opacity=0.5,
            offsetgroup=f"{number} random", error_y=whiskers(part, "control", "control_low", "control_high"),
        )  # fmt: skip
        if floor is not None:
            figure.add_scatter(
                x=part[name], y=part[floor], mode="markers", name=f"{floor}{suffix}",
                marker=dict(symbol="line-ew-open", size=24, color=COLOURS[(number + 1) % len(COLOURS)]),
            )  # fmt: skip
    figure.update_layout(
        title=dict(text=title), template="plotly_white", height=420, barmode="group", yaxis=dict(title=dict(text=y)),
        legend=dict(orientation="h", y=-0.2),
    )  # fmt: skip
    return figure
