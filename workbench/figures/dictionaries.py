"""Latents of a dictionary: whose they are, against how much of tuning's change they carry."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.layout import laid_out

COLOURS = {"tuned": "#D55E00", "base": "#0072B2", "shared": "#999999", "mixed": "#CCBB44", "latents": "#0072B2"}


def latent_figure(table: pd.DataFrame, *, title: str, score: str) -> go.Figure:
    """A point per latent: ``score`` over ``explained``, coloured by ``kind`` where there is one.

    Args:
        table: latent, score, low, high, control, q, explained, and kind for a crosscoder.
        title: Above the figure.
        score: What the score is, in words.
    """
    kinds = table["kind"] if "kind" in table else pd.Series("latents", index=table.index)
    figure = go.Figure()
    for kind in (name for name in COLOURS if (kinds == name).any()):
        part = table[kinds == kind]
        figure.add_scatter(
            x=part["explained"].tolist(),
            y=part["score"].tolist(),
            mode="markers",
            marker={"color": COLOURS[kind], "opacity": [0.9 if q < 0.05 else 0.3 for q in part["q"]]},
            name=kind,
            customdata=part[["latent", "low", "high", "control", "q"]].to_numpy().tolist(),
            hovertemplate=(
                "latent %{customdata[0]}: %{y:.3g} [%{customdata[1]:.3g}, %{customdata[2]:.3g}]<br>control "
                "%{customdata[3]:.3g}, q = %{customdata[4]:.2g}<extra></extra>"
            ),
        )
    return laid_out(
        figure, title, xaxis={"title": "share of tuning's squared change", "tickformat": ".1%"}, y=score,
        legend={"title": {"text": "whose"}},
    )  # fmt: skip
