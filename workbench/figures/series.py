"""Series of models: a line per member by layer, and curves over the members."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.tokens import safe


def lines_by_layer(profile: pd.DataFrame, *, title: str = "", unit: str = "") -> go.Figure:
    """Columns member, layer, change: a line per member, early ones light, late ones dark."""
    figure = go.Figure()
    names = list(dict.fromkeys(profile["member"]))
    for number, name in enumerate(names):
        rows = profile[profile["member"] == name].sort_values("layer")
        shade = 0.25 + 0.75 * (number + 1) / len(names)
        figure.add_scatter(
            x=rows["layer"].tolist(), y=rows["change"].tolist(), mode="lines+markers", name=safe(str(name)),
            line=dict(color=f"rgba(33, 102, 172, {shade:.2f})"),
        )  # fmt: skip
    figure.update_layout(
        title=dict(text=safe(title)), template="plotly_white", xaxis=dict(title=dict(text="layer")),
        yaxis=dict(title=dict(text=unit)),
    )  # fmt: skip
    return figure


def points_on_map(members: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Columns member, member_score, x, y: a point per member, and the base at 0, 0."""
    figure = go.Figure()
    scores = members["member_score"]
    colour = dict(color=scores.tolist(), colorscale="Blues", showscale=True) if scores.notna().all() else {}
    names = [safe(str(name)) for name in members["member"]]
    figure.add_scatter(
        x=members["x"].tolist(), y=members["y"].tolist(), mode="markers+text", text=names, name="members",
        textposition="top center", marker=dict(size=9, **colour),
    )  # fmt: skip
    figure.add_scatter(x=[0], y=[0], mode="markers", name="base", marker=dict(color="#888888", symbol="x", size=9))
    figure.update_layout(title=dict(text=safe(title)), template="plotly_white")
    return figure


def labelled_points(table: pd.DataFrame, label: str, *, title: str = "", unit: str = "") -> go.Figure:
    """One point with its interval per row (columns ``label``, score, low, high), the control as a grey cross."""
    names = [safe(str(name)) for name in table[label]]
    score = table["score"].to_numpy(float)
    figure = go.Figure()
    figure.add_scatter(
        x=names, y=score, mode="markers", name=unit, marker=dict(color="#2166ac", size=9),
        error_y=dict(array=table["high"].to_numpy(float) - score, arrayminus=score - table["low"].to_numpy(float)),
    )  # fmt: skip
    figure.add_scatter(
        x=names, y=table["control"].to_numpy(float), mode="markers", name="control",
        marker=dict(color="#888888", symbol="x"),
    )  # fmt: skip
    figure.update_layout(
        title=dict(text=safe(title)), template="plotly_white", yaxis=dict(title=dict(text=unit)),
        legend=dict(orientation="h", y=-0.3),
    )  # fmt: skip
    return figure
