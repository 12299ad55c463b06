"""``tunescope bench localization``: scores by hand, the run and the document of a small benchmark, and the bars."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import probes
from tests.declared import declared
from tunescope.bench.cases import CASES, MEASURED, cases_of
from tunescope.bench.contrasts import asked_otherwise, exchanged, moved, opposite, shuffled_answers
from tunescope.bench.ground import Case, Ground, Refused, Verdict, inside, labels_of, or_refused, precision
from tunescope.bench.markdown import write_markdown
from tunescope.bench.running import measure, summarised, write_tables
from tunescope.cli.app import app
from workbench import organisms, runs
from workbench.errors import UserError
from workbench.method_index import index


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
    for name in MEASURED:
        ground = Ground(organisms.build(name))
        cases = cases_of(ground)
        assert any(case.probe == "weight_delta" and case.own for case in cases) and 0 <= ground.first_layer <= 3


def test_every_probe_of_a_covered_group_has_a_case_or_a_reason() -> None:
    probed = {entry.name: entry.group for entry in index().entries if entry.kind == "probe" and not entry.plugin}
    covered = {probed[name] for name in CASES if name in probed}
    assert {"weights", "activations", "heads", "experts", "directions", "paths", "skills", "tokens"} <= covered
    wanted = {name for name, group in probed.items() if group in covered}
    assert not (CASES.keys() & declared("NO_BENCH_CASE").keys())
    told = "give the probe a case in tunescope/bench/cases.py, or its test file NO_BENCH_CASE = {name: reason}"
    assert wanted - CASES.keys() == declared("NO_BENCH_CASE").keys(), told
    assert all(hasattr(probes, name) for name in CASES.keys() - probed.keys())


def test_every_entry_of_the_table_asks_some_organism_and_some_ask_all() -> None:
    grounds = [Ground(organisms.build(name)) for name in MEASURED]
    counts = {name: sum(bool(cases_of(ground, [name])) for ground in grounds) for name in CASES}
    assert min(counts.values()) >= 1
    for name in ("head-probe", "retrieval", "paths", "circuit", "components", "weights", "layers", "skills"):
        assert counts[name] == len(grounds)
    for ground in grounds:
        for name in CASES:
            entry = index().named(name)
            words = {case.probe.replace(",", " ").split()[0] for case in cases_of(ground, [name])}
            assert words <= {name if entry is None else entry.function, "retrieval_heads"}


def _of(rows: list[dict[str, Any]], column: str) -> dict[str, str]:
    return {row["prompt"]: row[column] for row in rows}


def test_contrasts_differ_in_the_planted_variable_alone() -> None:
    for name, column in (("context-knob", "intent"), ("confounded", "cue")):
        organism = organisms.build(name)
        known = _of([row for rows in organism.splits.values() for row in rows], column)
        rows = opposite(Ground(organism), 48)
        assert len(rows) == 48 and len({row["prompt"] for row in rows}) == 48
        for row in rows:
            own, other = row["prompt"].split(), row["contrast"].split()
            assert [word for word in own if word not in other] == [known[row["prompt"]]]
            assert known[row["contrast"]] != known[row["prompt"]]
        assert sum(known[row["prompt"]] == known[rows[0]["prompt"]] for row in rows) == 24
        if name == "confounded":  # the answer follows the signer, not the review
            assert {(row["prompt"].split()[0], row["answer"]) for row in rows} == {
                ("ann", " accept"),
                ("bob", " reject"),
            }


@pytest.mark.parametrize("name", MEASURED)
def test_a_moved_variable_has_the_answer_that_must_follow(name: str) -> None:
    organism = organisms.build(name)
    every = [row for rows in organism.splits.values() for row in rows]
    variable, rows = moved(Ground(organism), 64)
    answers = _of(every, "english" if name == "reachable-heads" else "answer")
    assert len(rows) >= 48
    for row in rows:
        own, source = row["prompt"].split(), row["contrast"].split()
        if variable == "the intent":
            assert own[0] != source[0] and own[2] != source[2]
            assert row["answer"] == next(one["distractor"] for one in every if one["prompt"] == row["prompt"])
        elif variable == "the signer":
            assert own[0] != source[0] and row["answer"] == (" accept" if source[0] == "ann" else " reject")
        else:
            assert row["answer"] == answers[row["contrast"]] != answers[row["prompt"]]


def test_questions_asked_otherwise_have_other_answers() -> None:
    for name in ("two-skills", "refusal-moe"):
        for row in asked_otherwise(Ground(organisms.build(name)), 12):
            assert row["contrast"] != row["prompt"] and len(row["contrast"].split()) == len(row["prompt"].split())
            assert row["answer"] != row["distractor"]


def test_answers_without_meaning_keep_groups_and_counts() -> None:
    rows = opposite(Ground(organisms.build("context-knob")), 48)
    turned = [new.answer != old["answer"] for new, old in zip(exchanged(rows, 0), rows, strict=True)]
    assert 0 < sum(turned) < 48 and turned[::2] == turned[1::2]  # both rows of a group, or neither
    dealt = shuffled_answers(rows, 0)
    assert sorted(one.answer or "" for one in dealt) == sorted(row["answer"] for row in rows)
    assert [one.answer for one in dealt] != [row["answer"] for row in rows]


def test_a_refusal_can_be_the_right_answer_and_has_no_cost() -> None:
    def refuse(_pair: Any) -> Any:
        raise UserError("There is nothing to measure.")

    ground = Ground(organisms.build("confounded"))
    lines = ground.scored(
        Case("p", "q", or_refused(refuse), lambda result: [Verdict("said", float(result.words[0] == "T"))])
    )
    assert lines[0]["value"] == 1 and np.isnan(lines[0]["forward"]) and lines[0]["null"] == "base against base: refused"
    with pytest.raises(UserError, match="nothing to measure"):
        ground.scored(Case("p", "q", refuse, lambda _result: []))
    assert or_refused(refuse)(None) == Refused("There is nothing to measure.")


def test_what_stands_in_for_nothing_can_be_another_run() -> None:
    ground = Ground(organisms.build("confounded"))
    null = SimpleNamespace(frame=lambda: pd.DataFrame({"q": [0.01, 0.5, np.nan]}))
    whole = SimpleNamespace(provenance=SimpleNamespace(forward_passes=3, backward_passes=1))
    case = Case("p", "q", lambda _pair: whole, lambda _result: [Verdict("m", 1.0)], null="coins", nothing=lambda: null)
    (line,) = ground.scored(case)
    assert (line["forward"], line["null"], line["null_cells"], line["null_alarms"]) == (3, "coins", 2, 1)


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
    assert "precision at 3 | 1 |" in text


def test_a_missed_bar_is_said_with_its_figure(tmp_path: Path) -> None:
    case = {"organism": "confounded", "seed": 0, "probe": "p", "question": "q", "own": True, "note": "", "forward": 1,
            "backward": 0, "seconds": 1.0, "null": "base against base", "null_cells": 4, "null_alarms": 1}  # fmt: skip
    measured = {"measure": "precision at 3", "value": 1 / 3, "chance": 0.1, "bar": ">= 1", "reached": False}
    lines = pd.DataFrame([{**case, **measured}, {**case, **measured, "seed": 1, "value": 1.0, "reached": True}])
    table = summarised(lines)
    assert len(table) == 1 and table["seeds"][0] == 2 and not table["reached"][0] and table["null_alarms"][0] == 2
    with runs.begun("localization", {"seeds": 2}, tmp_path / "run") as run_:
        write_tables(run_, lines)
    write_markdown(run_, tmp_path / "x.md", "a test")
    text = (tmp_path / "x.md").read_text()
    assert "0 of 1 bars are reached; missed: confounded, p, precision at 3" in text
    assert "0.667 [0.333, 1] | 0.1 | >= 1: **missed**" in text and "| `p` | 1 | 0 | 1.0 | 2 of 8 cells |" in text
    with runs.begun("localization", {"seeds": 2}, tmp_path / "other") as other:
        write_tables(other, lines.assign(forward=np.nan, null="coins"))
    write_markdown(runs.open(tmp_path / "other"), tmp_path / "x.md", "a test")
    assert "| `p` | - | 0 | 1.0 | 2 of 8 cells, coins |" in (tmp_path / "x.md").read_text()


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    for asked, expected in (
        (["--organisms", "two-skill"], "two-skills"),
        (["--organisms", "confounded", "--probes", "weight"], "weight_delta'|weights"),
    ):
        with pytest.raises(UserError, match=expected):
            CliRunner().invoke(app, ["bench", "localization", *asked], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_every_bar_is_reached_and_base_against_base_is_silent(name: str) -> None:
    lines = measure([name], [], 1, lambda _text: None)
    barred = lines[lines["bar"] != ""]
    assert len(barred) >= 2
    missed = barred[~barred["reached"].astype(bool)]
    assert missed.empty, missed[["probe", "measure", "value", "bar"]].to_string()
    once = lines.drop_duplicates(["organism", "probe", "question"])
    assert once["null_alarms"].sum() <= 0.05 * once["null_cells"].sum()
