"""Figures of an experiment: a row per recipe and cell, stand-ins as grey rings beside it, doses as lines."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from workbench.figures.experiment import GREY, dose_figure, grid_figure

CELLS = {0: "seed=0", 1: "seed=1"}


def table(strengths: tuple[float, ...] = (1.0,)) -> pd.DataFrame:
    lines = []
    for cell in CELLS:
        for metric in ("accuracy", "prob"):
            for of in ("base", "tuned"):
                lines.append({"cell": cell, "of": of, "strength": float("nan"), "metric": metric, "estimate": 0.5})
            for strength in strengths:
                for of in ("off", "random off"):
                    value = 0.1 * strength + cell
                    lines.append({"cell": cell, "of": of, "strength": strength, "metric": metric, "estimate": value})
    frame = pd.DataFrame(lines)
    return frame.assign(low=frame["estimate"] - 0.1, high=frame["estimate"] + 0.2, n=9.0)


def test_a_row_per_recipe_and_cell_and_one_for_what_all_cells_share() -> None:
    drawn = grid_figure(table(), CELLS, title="effect")
    rows = list(drawn.layout.yaxis.categoryarray)[::-1]
    assert rows == ["base", "tuned", "off | seed=0", "off | seed=1"]
    assert [annotation.text for annotation in drawn.layout.annotations] == ["accuracy", "prob"]
    ring = next(value for value in drawn.data if value.name == "random off")
    assert ring.marker.color == GREY and list(ring.y) == ["off | seed=0", "off | seed=1"]
    dots = next(value for value in drawn.data if value.name == "off")
    assert list(dots.x) == pytest.approx([0.1, 1.1])
    assert list(dots.error_x.array) == pytest.approx([0.2, 0.2])
    assert list(dots.error_x.arrayminus) == pytest.approx([0.1, 0.1])
    assert list(dots.customdata[0]) == pytest.approx([0.0, 0.3, 9])


def test_models_that_differ_between_cells_have_a_row_in_each() -> None:
    given = table()
    given.loc[(given["of"] == "base") & (given["cell"] == 1), "estimate"] = 0.9
    rows = list(grid_figure(given, CELLS).layout.yaxis.categoryarray)[::-1]
    assert rows == ["base | seed=0", "base | seed=1", "tuned", "off | seed=0", "off | seed=1"]


def test_a_dose_is_a_line_per_cell_with_its_stand_ins_grey() -> None:
    drawn = dose_figure(table((0.0, 2.0, 1.0)), CELLS)
    lines: dict[str, Any] = {value.name: value for value in drawn.data if value.showlegend}
    assert set(lines) == {f"{of} ({cell})" for of in ("off", "random off") for cell in CELLS.values()}
    assert list(lines["off (seed=0)"].x) == [0, 1, 2] and list(lines["off (seed=0)"].y) == pytest.approx([0, 0.1, 0.2])
    assert lines["random off (seed=0)"].line.color == GREY != lines["off (seed=0)"].line.color
    assert lines["off (seed=0)"].line.dash != lines["off (seed=1)"].line.dash
    assert {annotation.text for annotation in drawn.layout.annotations} >= {"base", "tuned", "accuracy", "prob"}


def test_one_cell_needs_no_settings_in_its_names() -> None:
    only = table()[table()["cell"] == 0]
    assert list(grid_figure(only, {0: "the only cell"}).layout.yaxis.categoryarray)[::-1] == ["base", "tuned", "off"]
    assert {value.name for value in dose_figure(only, {0: "the only cell"}).data} == {"off", "random off"}
