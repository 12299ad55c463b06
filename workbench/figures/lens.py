"""The logit-lens grid: layers by tokens for both models, and the KL between them."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.cells import bar_title
from workbench.figures.tokens import escaped, shortened, visible, visible_line

LETTERS = 12
"""Of a token on the axis; the pointer shows all of it."""
LINE = 110
"""Letters that fit on a line of cells in a page's width."""
MOST_WRITTEN = 32
"""With more tokens than this the cells are too narrow for words."""


def lens_grid(cells: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Three maps over the same tokens: what base and tuned would say after each layer (coloured by probability,
    the same scale in both), and the KL of tuned from base.

    ``cells`` holds one prompt: model, position, token, layer, says, top, probability, entropy, kl. Columns are
    placed by position, so that repeated tokens stay apart.
    """
    models = list(dict.fromkeys(cells["model"]))
    figure = make_subplots(
        rows=len(models) + 1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        subplot_titles=[*models, "KL of tuned from base (nats)"],
    )
    for number, model in enumerate(models, start=1):
        part = cells[cells["model"] == model]
        bar = _place(number, len(models) + 1) if number == 1 else None
        _grid(figure, number, part, "probability", "Blues", (0.0, 1.0), bar)
    last = cells[cells["model"] == models[-1]]
    top = float(cells["kl"].max()) or 1.0
    _grid(figure, len(models) + 1, last, "kl", "Oranges", (0.0, top), _place(len(models) + 1, len(models) + 1))
    columns = last.drop_duplicates("position").sort_values("position")
    figure.update_xaxes(
        tickmode="array",
        tickvals=columns["position"].tolist(),
        ticktext=[escaped(shortened(visible(token), LETTERS)) for token in columns["token"]],
        tickangle=-60,
    )
    layers = sorted(cells["layer"].unique().tolist())
    figure.update_yaxes(title_text="layer", tickmode="array", tickvals=layers)
    figure.update_layout(
        template="plotly_white",
        title={"text": escaped(title), "font": {"size": 15}},
        height=160 + (len(models) + 1) * max(140, 22 * len(layers)),
        margin={"l": 60, "r": 30, "t": 70, "b": 80},
    )
    return figure


def _grid(
    figure: go.Figure,
    row: int,
    part: pd.DataFrame,
    value: str,
    colours: str,
    limits: tuple[float, float],
    bar: dict[str, float] | None,
) -> None:
    """One map; ``bar`` places its colour scale, None leaves it out (the map above has the same)."""
    wide = part.pivot(index="layer", columns="position", values=value)
    letters = max(3, LINE // max(1, wide.shape[1]))
    words = part.pivot(index="layer", columns="position", values="says").map(
        lambda text: escaped(shortened(visible(text), letters))
    )
    shown = part.assign(
        hover=[
            f"after layer {line['layer']}, token {line['position']} {escaped(visible(line['token']))}<br>"
            f"{escaped(visible_line(line['top']))}<br>entropy {line['entropy']:.2f} nats, KL {line['kl']:.3g} nats"
            for line in part.to_dict("records")
        ]
    ).pivot(index="layer", columns="position", values="hover")
    figure.add_heatmap(
        z=wide.to_numpy().tolist(),
        x=wide.columns.tolist(),
        y=wide.index.tolist(),
        text=(words if value == "probability" else wide.map(_short)).to_numpy().tolist(),
        texttemplate="%{text}" if wide.shape[1] <= MOST_WRITTEN else None,
        textfont={"size": 11},
        customdata=shown.to_numpy().tolist(),
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=colours,
        zmin=limits[0],
        zmax=limits[1],
        showscale=bar is not None,
        colorbar={"title": bar_title("KL (nats)" if value == "kl" else value), **(bar or {})},
        xgap=1,
        ygap=1,
        row=row,
        col=1,
    )


def _place(number: int, count: int) -> dict[str, float]:
    """A colour bar beside its own map."""
    return {"len": 0.9 / count, "y": 1 - (number - 0.5) / count}


def _short(number: float) -> str:
    """In four letters, which a narrow cell holds; the pointer shows the number itself."""
    return f"{number:.3g}" if number >= 10 else f"{number:.1f}" if number >= 0.95 else f"{number:.2f}"
