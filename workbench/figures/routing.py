"""Which experts each token of a prompt is sent to, layer by layer, in both models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.cells import COLOURS, bar_title
from workbench.figures.layout import laid_out
from workbench.figures.tokens import escaped, shortened, visible

LETTERS = 10
MOST_LABELLED = 40
BASE_COLOUR, TUNED_COLOUR, KEPT_COLOUR = "rgba(0,114,178,0.55)", "rgba(213,94,0,0.55)", "rgba(127,127,127,0.3)"


def routing_map(cells: pd.DataFrame, tokens: Sequence[str], *, title: str = "") -> go.Figure:
    """Tokens across, experts down (grouped by layer): the router's weight in base and tuned on one scale from 0, and
    their difference on a scale centred at 0.

    ``cells``: model (base, tuned), layer, position, expert, weight (share of the token's weight) of the selected
    experts only. Experts that neither model selects for this prompt have no line.
    """
    places = sorted({*zip(cells["layer"], cells["expert"], strict=True)})
    rows = {place: number for number, place in enumerate(places)}
    models = {name: np.zeros((len(places), len(tokens))) for name in ("base", "tuned")}
    for line in cells.to_dict("records"):
        models[line["model"]][rows[line["layer"], line["expert"]], line["position"]] += line["weight"]
    base, tuned = models["base"], models["tuned"]
    change = tuned - base
    bound, top = float(np.abs(change).max(initial=0.0)) or 1.0, float(max(base.max(), tuned.max())) or 1.0
    panels = [("base", base, "Blues", 0.0, top), ("tuned", tuned, "Blues", 0.0, top),
              ("tuned - base", change, COLOURS, -bound, bound)]  # fmt: skip
    figure = make_subplots(
        cols=3, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[name for name, *_ in panels]
    )
    texts = _told(base, tuned, places, tokens)
    for place, (_, values, colours, low, high) in enumerate(panels, start=1):
        bar = None if place == 2 else {"x": 1.0 if place == 1 else 1.1, "thickness": 14}
        figure.add_heatmap(
            z=values.tolist(), text=texts, hovertemplate="%{text}<extra></extra>", colorscale=colours, zmin=low,
            zmax=high, xgap=1, ygap=1, showscale=bar is not None,
            colorbar={"title": bar_title("router weight" if place == 1 else "change of the weight"), **(bar or {})},
            row=1, col=place,
        )  # fmt: skip
    _axes(figure, places, tokens)
    return laid_out(
        figure, title, height=200 + min(1400, max(160, 17 * len(places))), margin={"l": 80, "r": 20, "t": 80, "b": 90},
    )  # fmt: skip


def routing_flow(cells: pd.DataFrame, *, title: str = "") -> go.Figure:
    """The prompt's tokens through the experts as a flow from layer to layer; colour says which model.

    The width between two experts of neighbouring layers is the number of tokens that took both, each counted by the
    product of its two router weights. What base and tuned share is grey, what only the base does is blue, what only
    the tuned model does orange.
    """
    flows = _flows(cells)
    starts, ends = zip(flows["layer"], flows["from"], strict=True), zip(flows["layer"] + 1, flows["to"], strict=True)
    names = sorted({*starts, *ends})
    layers = sorted(cells["layer"].unique().tolist())
    number = {name: place for place, name in enumerate(names)}
    links: dict[str, list] = {"source": [], "target": [], "value": [], "color": [], "label": []}
    for row in flows.to_dict("records"):
        shared = min(row["base"], row["tuned"])
        parts = ((shared, KEPT_COLOUR, "both"), (row["base"] - shared, BASE_COLOUR, "base only"),
                 (row["tuned"] - shared, TUNED_COLOUR, "tuned only"))  # fmt: skip
        for width, colour, who in parts:
            if width > 1e-6:
                links["source"].append(number[row["layer"], row["from"]])
                links["target"].append(number[row["layer"] + 1, row["to"]])
                links["value"].append(width)
                links["color"].append(colour)
                links["label"].append(who)
    figure = go.Figure(go.Sankey(
        arrangement="snap",
        node={
            "label": [f"L{layers[step]}E{expert}" for step, expert in names], "color": "#444444", "pad": 8,
            "thickness": 12, "hovertemplate": "%{label}: %{value:.2f} tokens<extra></extra>",
        },
        link={
            **links,
            "hovertemplate": "%{source.label} to %{target.label}, %{label}: %{value:.2f} tokens<extra></extra>",
        },
    ))  # fmt: skip
    laid_out(
        figure, title,
        height=200 + 34 * max((sum(step == number for step, _ in names) for number in range(len(layers))), default=1),
        margin={"l": 20, "r": 60, "t": 90, "b": 40},
    )  # fmt: skip
    for place, (text, colour) in enumerate((("base and tuned", "#7f7f7f"), ("base only", "#0072B2"),
                                            ("tuned only", "#D55E00"))):  # fmt: skip
        figure.add_annotation(
            text=f"■ {text}", font={"color": colour, "size": 12}, showarrow=False, xref="paper", yref="paper",
            x=0.16 * place, y=1.0, yanchor="bottom", xanchor="left", yshift=12,
        )  # fmt: skip
    return figure


def _flows(cells: pd.DataFrame) -> pd.DataFrame:
    """layer (its place among the layers), from, to, base, tuned: tokens that took both experts."""
    step = {layer: place for place, layer in enumerate(sorted(cells["layer"].unique()))}
    placed = cells.assign(layer=cells["layer"].map(step))
    after = placed.assign(layer=placed["layer"] - 1)
    joined = placed.merge(after, on=["model", "layer", "position"], suffixes=("", "_next"))
    joined = joined.assign(width=joined["weight"] * joined["weight_next"])
    wide = joined.pivot_table(
        index=["layer", "expert", "expert_next"], columns="model", values="width", aggfunc="sum", fill_value=0.0
    )
    wide = wide.reindex(columns=["base", "tuned"], fill_value=0.0).reset_index()
    return wide.rename(columns={"expert": "from", "expert_next": "to"})


def _told(base: np.ndarray, tuned: np.ndarray, places: Sequence[tuple[int, int]], tokens: Sequence[str]) -> list:
    shown = [escaped(visible(token)) for token in tokens]
    return [
        [
            f"L{layer}E{expert}, token {position} {shown[position]}<br>base {base[row, position]:.3f}, "
            f"tuned {tuned[row, position]:.3f}, change {tuned[row, position] - base[row, position]:+.3f}"
            for position in range(len(tokens))
        ]
        for row, (layer, expert) in enumerate(places)
    ]


def _axes(figure: go.Figure, places: Sequence[tuple[int, int]], tokens: Sequence[str]) -> None:
    """Experts by label with a line between layers; tokens by place, so that repeated ones stay apart."""
    labels = [f"L{layer}E{expert}" for layer, expert in places]
    figure.update_yaxes(tickmode="array", tickvals=list(range(len(places))), ticktext=labels, autorange="reversed")
    figure.update_yaxes(title_text="expert", col=1)
    if len(tokens) <= MOST_LABELLED:
        words = [escaped(shortened(visible(token), LETTERS)) for token in tokens]
        figure.update_xaxes(tickmode="array", tickvals=list(range(len(tokens))), ticktext=words, tickangle=-60)
    figure.update_xaxes(title_text="token of the prompt")
    for row, (before, after) in enumerate(pairwise(places)):
        if before[0] != after[0]:
            figure.add_hline(y=row + 0.5, line={"color": "black", "width": 1})
