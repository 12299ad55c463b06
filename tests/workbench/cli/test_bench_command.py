"""``tunescope bench localization``: scores by hand, the run and the document of a small benchmark, and the bars."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from workbench import organisms, runs
from workbench.cli.app import app
from workbench.cli.bench.cases import cases_of
from workbench.cli.bench.ground import Ground, inside, labels_of, precision
from workbench.cli.bench.markdown import write_markdown
from workbench.cli.bench.running import measure, summarised, written
from workbench.errors import UserError


def heads(scores: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": np.arange(len(scores)), "head": 0, "score": scores})


def test_precision_at_k_counts_ties_by_their_share() -> None:
    planted = [(0, 0), (2, 0)]
    assert precision(heads([5, 1, 4, 0]), planted, ("layer", "head")).value == 1
    assert precision(heads([5, 4, 1, 0]), planted, ("layer", "head")).value == 0.5
    assert precision(heads([0, 5, 1, 4]), planted, ("layer", "head")).value == 0
    nothing = precision(heads([0, 0, 0, 0]), planted, ("layer", "head"))
    assert nothing.value == nothing.chance == 0.5
    half = precision(heads([5, 1, 1, 1]), planted, ("layer", "head"))  # the second place is a draw among three
    assert half.value == pytest.approx((1 + 1 / 3) / 2)


def test_labels_and_the_share_of_a_graft_inside_a_region() -> None:
    assert labels_of(("L1H2", "L10H11"), "H") == [(1, 2), (10, 11)]
    region = {"a": torch.tensor([[True, False], [True, False]])}
    flat, dense = torch.tensor([0, 1]), torch.tensor([[True, False], [True, True]])
    assert inside({"a": flat}, region) == 0.5 and inside({"a": dense}, region) == pytest.approx(2 / 3)
    assert inside({"a": flat, "b": flat}, region) == 0.25 and inside({}, region) == 0


def test_every_organism_has_cases_and_a_first_layer() -> None:
    for name in organisms.names():
        ground = Ground(organisms.build(name))
        cases = cases_of(ground)
        assert any(case.probe == "weight_delta" and case.own for case in cases) and 0 <= ground.first_layer <= 3


def test_a_small_benchmark_is_a_run_a_document_and_json(tmp_path: Path) -> None:
    out, document = tmp_path / "run", tmp_path / "localization.md"
    result = CliRunner().invoke(app, [
        "bench", "localization", "--organisms", "confounded,planted-heads", "--probes", "weight_delta",
        "--json", "--out", str(out), "--markdown", str(document),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert {row["organism"] for row in rows} == {"confounded", "planted-heads", "planted-heads (write)"}
    assert all(row["value"] == 1 and row["reached"] is True and row["null_alarms"] == 0 for row in rows)
    assert all(row["null_cells"] > 0 and 0 < row["chance"] < 1 for row in rows)
    found = runs.open(out)
    assert found.is_complete and len(found.read_table("tables/lines")) == len(rows)
    text = document.read_text()
    assert "3 of 3 bars are reached." in text and "## planted-heads (write)" in text
    assert "precision at 3 | 1 |" in text and "`retrieval_heads`" in text


def test_a_missed_bar_is_said_with_its_figure(tmp_path: Path) -> None:
    case = {"organism": "confounded", "seed": 0, "probe": "p", "question": "q", "own": True, "note": "", "forward": 1,
            "backward": 0, "seconds": 1.0, "null": "base against base", "null_cells": 4, "null_alarms": 1}  # fmt: skip
    measured = {"measure": "precision at 3", "value": 1 / 3, "chance": 0.1, "bar": ">= 1", "reached": False}
    lines = pd.DataFrame([{**case, **measured}, {**case, **measured, "seed": 1, "value": 1.0, "reached": True}])
    table = summarised(lines)
    assert len(table) == 1 and table["seeds"][0] == 2 and not table["reached"][0] and table["null_alarms"][0] == 2
    run_ = written(lines, {"seeds": 2}, tmp_path / "run")
    write_markdown(run_, tmp_path / "x.md", "a test")
    text = (tmp_path / "x.md").read_text()
    assert "0 of 1 bars are reached; missed: confounded, p, precision at 3" in text
    assert "0.667 [0.333, 1] | 0.1 | >= 1: **missed**" in text and "2 of 8 cells" in text


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    for asked, expected in (
        (["--organisms", "two-skill"], "two-skills"),
        (["--organisms", "confounded", "--probes", "weights"], "weight_delta"),
    ):
        with pytest.raises(UserError, match=expected):
            CliRunner().invoke(app, ["bench", "localization", *asked], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", organisms.names())
def test_every_bar_is_reached_and_base_against_base_is_silent(name: str) -> None:
    lines = measure([name], [], 1, lambda _text: None)
    barred = lines[lines["bar"] != ""]
    assert len(barred) >= 2
    missed = barred[~barred["reached"].astype(bool)]
    assert missed.empty, missed[["probe", "measure", "value", "bar"]].to_string()
    once = lines.drop_duplicates(["organism", "probe", "question"])
    assert once["null_alarms"].sum() <= 0.05 * once["null_cells"].sum()
