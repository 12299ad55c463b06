"""Maps of cells: scales centred at 0, greyed where the control reaches, nothing obeyed, cells that can be clicked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.attention import attention_panels
from workbench.figures.cells import mark_cell
from workbench.figures.graft import variants_figure
from workbench.figures.heads import head_heatmap
from workbench.figures.knob import natural_spread
from workbench.figures.lens import lens_grid
from workbench.figures.overlap import shared_bars
from workbench.figures.routing import routing_flow, routing_map
from workbench.figures.tokens import safe
from workbench.figures.weights import cell_map
from workbench.figures.words import GREY, word_bars

EVIL = "<script>alert(1)</script>"


def drawn(figure: go.Figure) -> dict:
    return json.loads(figure.to_json())


def a_table(layers: int, heads: int) -> pd.DataFrame:
    score = np.linspace(-1.0, 0.5, layers * heads)
    return pd.DataFrame({
        "layer": np.repeat(range(layers), heads), "head": np.tile(range(heads), layers), "score": score,
        "low": score - 0.1, "high": score + 0.1, "control": 0.0, "control_low": -0.2, "control_high": 0.2, "q": 0.01,
        "n": 30,
    })  # fmt: skip


def test_a_map_is_centred_greyed_inside_the_band_and_tells_interval_control_and_n() -> None:
    table = a_table(3, 4)
    heat, grey, markers = head_heatmap(table, title=EVIL, score="accuracy").data
    assert heat.zmin == -heat.zmax == -1.0 and heat.zmid == 0
    inside = table["score"].between(-0.2, 0.2).sum()
    assert np.isfinite(np.array(grey.z, float)).sum() == inside > 0 and grey.opacity < 1
    told = markers.text[0]
    assert "95 % interval -1.1 to -0.9" in told and "control +0 (-0.2 to +0.2)" in told and "n = 30" in told
    assert list(markers.customdata[5]) == [1, 1] and len(markers.customdata) == 12
    assert "<script>" not in head_heatmap(table, title=EVIL, score=EVIL).to_json()


def test_two_maps_can_share_a_scale_and_a_cell_is_framed() -> None:
    figure = head_heatmap(a_table(2, 2), limit=3.0)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-3.0, 3.0)
    frame = mark_cell(figure, 1, 0).layout.shapes[0]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (-0.5, 0.5, 0.5, 1.5)


def test_one_layer_alone_is_one_row() -> None:
    figure = cell_map(a_table(1, 4), "head", title="t", unit="relative change")
    assert list(figure.layout.yaxis.range) == [-0.5, 0.5]


def test_every_cell_of_a_map_of_64_by_64_can_be_clicked() -> None:
    assert len(head_heatmap(a_table(64, 64)).data[2].x) == 64 * 64


def test_attention_panels_share_a_scale_and_hide_the_future() -> None:
    base = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    tuned = np.array([[1.0, 0, 0], [0.1, 0.9, 0], [0.2, 0.3, 0.5]])
    figure = attention_panels(base, tuned, ["a", "a", EVIL], title=EVIL)
    one, other, change = figure.data
    assert (one.zmin, one.zmax) == (other.zmin, other.zmax) == (0, 1)
    assert change.zmax == -change.zmin == np.abs(tuned - base).max()
    assert np.isnan(np.array(one.z, float))[np.triu_indices(3, 1)].all()
    assert change.z[1][1] == tuned[1, 1] - base[1, 1]
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2] and "<script>" not in figure.to_json()


def some_cells() -> pd.DataFrame:
    """Two tokens through two layers; tuning sends the second token of layer 3 to another expert."""
    rows = [
        (model, layer, position, expert, 1.0)
        for model in ("base", "tuned")
        for layer, position, expert in ((1, 0, 0), (1, 1, 2), (3, 0, 1), (3, 1, 5 if model == "tuned" else 1))
    ]
    return pd.DataFrame(rows, columns=["model", "layer", "position", "expert", "weight"])


def test_routing_map_has_a_row_per_expert_used_and_the_change_between_models() -> None:
    base, tuned, change = routing_map(some_cells(), ["a", EVIL]).data
    assert np.shape(base.z) == (4, 2)  # L1E0, L1E2, L3E1, L3E5
    assert np.array_equal(np.array(change.z), np.array(tuned.z) - np.array(base.z))
    assert change.z[2][1] == -1 and change.z[3][1] == 1 and change.zmin == -change.zmax
    assert base.zmax == tuned.zmax == 1
    assert "<script>" not in routing_map(some_cells(), ["a", EVIL], title=EVIL).to_json()


def test_routing_flow_keeps_the_number_of_tokens_of_each_model() -> None:
    (flow,) = routing_flow(some_cells(), title=EVIL).data
    width = pd.DataFrame({"who": flow.link.label, "width": flow.link.value}).groupby("who")["width"].sum()
    assert width["both"] + width["base only"] == 2 and width["both"] + width["tuned only"] == 2
    assert set(flow.node.label) == {"L1E0", "L1E2", "L3E1", "L3E5"}


def test_the_lens_keeps_repeated_tokens_apart_and_says_what_is_shortened() -> None:
    long = "x" * 50
    cells = pd.DataFrame([
        {"model": model, "position": position, "token": "the", "layer": layer, "says": long, "top": f"{long} 0.5",
         "probability": 0.5, "entropy": 1.0, "kl": 0.1}
        for model in ("base", "tuned") for position in range(12) for layer in range(2)
    ])  # fmt: skip
    figure = lens_grid(cells, title=EVIL)
    base, tuned, kl = figure.data
    assert list(base.x) == list(range(12)) and list(figure.layout.xaxis3.ticktext) == ["the"] * 12
    assert (base.zmin, base.zmax) == (tuned.zmin, tuned.zmax) and base.showscale and not tuned.showscale
    assert base.text[0][0].endswith("…") and long in base.customdata[0][0] and "KL" in kl.colorbar.title.text


def test_the_natural_coordinate_shows_every_row() -> None:
    natural = pd.DataFrame({"model": ["tuned"] * 4, "intent": [EVIL, "b"] * 2, "value": [1.0, 2.0, 3.0, 4.0]})
    figure = natural_spread(natural, title="t")
    assert [len(value.x) for value in figure.data] == [2, 2] and "<script>" not in figure.to_json()


def test_what_a_graft_does_stands_beside_base_tuned_and_the_rest() -> None:
    models = pd.DataFrame({
        "model": ["base", "tuned", "graft", EVIL], "entries": [0, 9, 3, 3], "accuracy": [0.2, 0.9, 0.8, float("nan")],
        "low": 0.1, "high": 1.0, "n": [40, 40, 40, float("nan")],
    })  # fmt: skip
    figure = variants_figure(models, title=EVIL)
    assert list(figure.data[0].x) == [0.2, 0.9, 0.8] and "n = 40" in figure.data[0].customdata[2][0]
    assert len(set(figure.data[0].marker.symbol)) == 3 and "<script>" not in figure.to_json()


def test_shared_weights_stand_beside_chance() -> None:
    table = pd.DataFrame({"first": [EVIL], "second": ["b"], "shared": [30], "expected": [4.0], "low": [1], "high": [8],
                          "p": [1e-9]})  # fmt: skip
    bars, chance = shared_bars(table).data
    assert list(bars.x) == [30] and list(chance.error_x.array) == [4.0] and "<script>" not in bars.y[0]


def test_words_inside_the_control_are_grey_and_same_words_stay_apart() -> None:
    table = pd.DataFrame({
        "model": ["base"] * 3, "token": ["a", "a", EVIL], "score": [2.0, 0.1, -2.0], "low": -3.0, "high": 3.0,
        "control_low": -0.5, "control_high": 0.5, "q": 0.1, "n": 4,
    })  # fmt: skip
    figure = word_bars(table)
    assert list(figure.data[0].marker.color)[1] == GREY and len(set(figure.data[0].marker.color)) == 3
    assert list(figure.data[0].y) == [0, 1, 2] and "<script>" not in figure.to_json()


def test_quotes_stay_quotes_in_a_figure() -> None:
    assert safe('say "a" & <b>') == 'say "a" &amp; &lt;b&gt;'
