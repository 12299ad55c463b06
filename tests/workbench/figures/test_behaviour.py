"""Figures of behaviour: what is drawn is what the tables say, readable and escaped."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.figures.behaviour import behaviour_figure
from workbench.figures.behaviour_calibration import calibration_figure
from workbench.figures.behaviour_dose import dose_figure
from workbench.figures.behaviour_scope import scope_figure
from workbench.figures.behaviour_texts import LONGEST, texts_figure, texts_html


def line(**given: object) -> dict[str, object]:
    return {"estimate": 0.5, "low": 0.4, "high": 0.7, "n": 9, **given}


def test_dots_stand_at_their_estimates_in_as_many_lines_as_needed() -> None:
    metrics = ["a", "b", "c", "d", "e"]
    table = pd.DataFrame([line(model=model, metric=metric) for model in ("base", "tuned") for metric in metrics])
    figure = behaviour_figure(table)
    assert len(figure.data) == 10 and len({trace.xaxis for trace in figure.data}) == 5
    first = figure.data[0]
    assert first.x == (0.5,) and first.error_x.array[0] == pytest.approx(0.2)
    assert first.error_x.arrayminus[0] == pytest.approx(0.1) and "n = 9" in first.hovertemplate


def dose_table(*, control: bool, side: bool) -> pd.DataFrame:
    table = pd.DataFrame([line(strength=strength, estimate=0.4 + 0.1 * strength) for strength in (0, 1, 2)])
    for name in ["control"] * control + ["side"] * side + ["side_control"] * (control and side):
        table = table.assign(**{name: 0.3, f"{name}_low": 0.2, f"{name}_high": 0.45})
    return table


@pytest.mark.parametrize(("control", "side", "traces"), [(False, False, 2), (True, False, 4), (True, True, 8)])
def test_dose_has_a_band_for_each_line(control: bool, side: bool, traces: int) -> None:
    figure = dose_figure(
        dose_table(control=control, side=side), metric="prob", side="perplexity" if side else "", start=0.4
    )
    assert len(figure.data) == traces
    own = next(trace for trace in figure.data if trace.name == "prob")
    assert own.y == pytest.approx((0.4, 0.5, 0.6)) and own.x == (0, 1, 2)
    band = figure.data[list(figure.data).index(own) - 1]
    assert band.y == pytest.approx((0.7, 0.7, 0.7, 0.4, 0.4, 0.4)) and band.fill == "toself"


def test_long_titles_of_the_two_axes_are_broken_into_lines() -> None:
    metric = "share of texts that begin with 'Nine stars out of'"
    figure = dose_figure(dose_table(control=False, side=True), metric=metric, side="perplexity of the others")
    lines = [figure.layout[axis].title.text.split("<br>") for axis in ("yaxis", "yaxis2")]
    assert " ".join(lines[0]) == metric and max(map(len, lines[0])) <= 34 and len(lines[0]) > 1
    assert max(map(len, lines[1])) <= 24


def test_scope_bars_inside_the_control_are_pale() -> None:
    shared = {"recipe": "r", "control": 0.1, "control_low": 0.0, "control_high": 0.2}
    rows = [
        line(scope="in scope", rate="applied", **{**shared, "estimate": 0.9}),
        line(scope="out of scope", rate="over-generalisation", **{**shared, "estimate": 0.1}),
    ]
    bars, control = scope_figure(pd.DataFrame(rows)).data
    assert bars.y == (0.9, 0.1) and bars.marker.opacity[0] > 0.9 > 0.5 > bars.marker.opacity[1]
    assert control.y == (0.1, 0.1) and "not told from the control" in bars.customdata[1]
    assert "not told" not in bars.customdata[0]


def test_calibration_has_a_diagonal_and_a_line_per_model() -> None:
    curve = pd.DataFrame([{**line(), "model": model, "confidence": 0.5, "share": 0.5} for model in ("base", "tuned")])
    figure = calibration_figure(curve)
    assert len(figure.data) == 3 and figure.data[0].x == (0, 1)
    assert figure.data[1].error_y.array[0] == pytest.approx(0.2)


def texts() -> pd.DataFrame:
    shared = {"prompt": 0, "asked": "which one?", "sample": 0}
    return pd.DataFrame([
        {**shared, "model": "base", "text": "the quick fox", "from_base": float("nan"), "at_base": float("nan")},
        {**shared, "model": "tuned", "text": "the quick dog ran", "from_base": 2.0, "at_base": 9.0},
    ])  # fmt: skip


def test_the_token_that_differs_is_marked() -> None:
    shown = texts_html(texts())
    assert 'the quick<mark style="background:#F0E442;color:#111"> dog</mark> ran' in shown
    assert '<span style="color:#777">the quick fox</span>' in shown
    (table,) = texts_figure(texts()).data
    _, sample, base, tuned = table.cells.values
    assert "the quick<b " in tuned[0] and " dog</b> ran" in tuned[0]
    assert "777777" in base[0] and list(sample) == ["greedy"]


def test_hostile_and_long_texts_are_cut_broken_and_escaped() -> None:
    table = texts()
    table.loc[1, "text"] = "the quick<script>alert(1)</script>\x1b[31m\u202e" + "x" * 5000
    shown = texts_html(table)
    assert "<script" not in shown and "&lt;script&gt;" in shown and "\x1b" not in shown and "\u202e" not in shown
    assert len(shown) < 3 * LONGEST + 1500
    cell = texts_figure(table).data[0].cells.values[3][0]
    assert "<script" not in cell and "\x1b" not in cell
    assert max(len(part) for part in cell.replace("</b>", "<br>").split("<br>")) < 120


def test_long_tables_say_that_they_are_cut() -> None:
    many = pd.concat([texts().assign(prompt=number) for number in range(30)])
    assert "The first 20 of 30" in texts_html(many)
    assert "the first 20 of 30" in texts_figure(many).layout.title.text
