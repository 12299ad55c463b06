"""All layers at a glance: weights, activations, lens, the patched residual stream and the best head, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

_HIGH = 48
"""Pixels of a row."""
_ACTIVATIONS = {"attn_out": "activations, attention", "mlp_out": "activations, MLP"}


def measures_of(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """layer, measure, value: what each layer scores in each table.

    Args:
        tables: ``weights``, ``activations``, ``lens``, ``layers``, ``heads``, as far as a look has them.
    """
    rows: list[tuple[str, int, float]] = []
    if "weights" in tables:
        weights = tables["weights"].dropna(subset=["layer"])
        part = weights["module"].astype(str).map(_part)
        top = weights.assign(part=part).groupby(["layer", "part"])[["score"]].max().reset_index()
        top = top[top.groupby("part")["score"].transform("max") > 0]  # what was not tuned takes no row
        rows += [(f"weights, {row['part']}", int(row["layer"]), float(row["score"])) for row in _rows(top)]
    if "activations" in tables:
        moved = _rows(tables["activations"].dropna(subset=["layer"]))
        rows += [(_ACTIVATIONS[str(row["site"])], int(row["layer"]), float(row["score"])) for row in moved]
    if "lens" in tables:
        rows += [("lens (nats)", int(row["layer"]), float(row["score"])) for row in _rows(tables["lens"])]
    if "layers" in tables:
        rows += [("residual stream patched", int(row["layer"]), float(row["score"])) for row in _rows(tables["layers"])]
    if "heads" in tables:
        top = tables["heads"].groupby("layer")[["score"]].max().reset_index()
        rows += [("best head", int(row["layer"]), float(row["score"])) for row in _rows(top)]
    return pd.DataFrame(rows, columns=["measure", "layer", "value"])


def layers_at_a_glance(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """A row per measure, each on its own scale from nothing to its largest; a click on a cell picks the layer."""
    measures = measures_of(tables)
    names = list(dict.fromkeys(measures["measure"]))[::-1]
    layers = sorted(set(measures["layer"]))
    wide = measures.pivot(index="measure", columns="layer", values="value").reindex(index=names, columns=layers)
    positive = wide.clip(lower=0)
    shades = positive.div(positive.max(axis=1).where(lambda top: top > 0, 1.0), axis=0)
    figure = go.Figure([
        go.Heatmap(
            z=shades.to_numpy().tolist(), x=layers, y=names, customdata=wide.to_numpy().tolist(), zmin=0, zmax=1,
            colorscale="Blues", xgap=1, ygap=2, colorbar={"title": {"text": "share of the row's largest"}},
            hovertemplate="layer %{x}<br>%{y}: %{customdata:.3g}<extra></extra>",
        ),
        go.Scatter(
            x=[layer for _ in names for layer in layers], y=[name for name in names for _ in layers], mode="markers",
            marker={"size": 14, "symbol": "square", "opacity": 0}, hoverinfo="skip", showlegend=False,
            customdata=[[layer] for _ in names for layer in layers], selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
        ),
    ])  # fmt: skip
    figure.update_layout(
        title="Layers at a glance", height=150 + _HIGH * len(names), margin={"l": 10, "r": 10, "t": 50, "b": 40},
        xaxis={"title": {"text": "layer"}}, yaxis={"automargin": True},
    )  # fmt: skip
    return figure


def sentence_of(measures: pd.DataFrame) -> str:
    """Where each measure is strongest, in one sentence."""
    if measures.empty:
        return "Nothing was measured."
    best = measures.loc[measures.groupby("measure", sort=False)["value"].idxmax()]
    cells = [f"{row['measure']} in layer {row['layer']} ({row['value']:.2g})" for row in _rows(best)]
    return f"Strongest: {'; '.join(cells)}."


def _part(module: str) -> str:
    """Of the layer: attention, MLP or other, by the name that the family gives the matrix."""
    if "norm" in module:
        return "other"
    return "attention" if "attn" in module or "attention" in module else "MLP" if "mlp" in module else "other"


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
