"""Truths that others made: compiled programs are exact, and methods are scored on them as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from tests.tiny import tiny_model, tokenizer
from tunescope.bench.mib import tasks
from tunescope.bench.outside import (
    HEAD,
    PUBLISHED_SETTINGS,
    command_line,
    measured_by,
    put_section,
    table_lines,
    timed,
)
from tunescope.bench.published import compared, section_table
from tunescope.bench.ravel.entities import Known, data, known
from tunescope.bench.ravel.subspaces import principal, swapped
from tunescope.bench.tracr.measuring import CHANGED, CIRCUIT, measure, summarised
from tunescope.bench.tracr.pairs import pairs_of
from tunescope.bench.tracr.porting import names, ported, program
from tunescope.bench.tracr.porting import tokenizer as of_program
from tunescope.cli.app import app
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("decoys", [True, False])
def test_the_ported_program_computes_what_tracr_computes(name: str, decoys: bool) -> None:
    source = program(name)
    model, words = ported(source, decoys=decoys), of_program(source)
    width = len(source.said["residual"])
    for text, reference in zip(source.said["texts"], source.weights["reference"], strict=True):
        ids = torch.tensor([words(" ".join(text))["input_ids"]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[1:]
        ours = torch.stack(states)[:, 0, :, :width].numpy()
        assert np.abs(ours - reference[1::2]).max() <= 1e-6


def test_there_are_at_least_twelve_programs_with_circuits() -> None:
    assert len(names()) >= 12 and all(program(name).circuit for name in names())


def test_a_pair_says_other_things_and_its_decoy_does_not_matter() -> None:
    made = pairs_of("less-frequent")
    assert [pair.component for pair in made] == program("less-frequent").circuit
    for pair in made:
        assert pair.decoy not in pair.source.circuit and len(pair.prompts) >= 4
        assert all(row.answer != row.distractor for row in pair.prompts)


def test_patching_names_what_was_replaced_and_weights_alone_do_not() -> None:
    lines = measure(["previous"], 1, lambda _: None)
    by_method = lines[lines["question"] == CHANGED].set_index("method")
    assert by_method.loc["patching, same inputs", "auroc"] == 1 == by_method.loc["patching, same inputs", "precision"]
    assert by_method.loc["path patching (heads)", "auroc"] == 1
    assert by_method.loc["weight_delta", "auroc"] < 1, "the decoy's weights changed too"
    circuit = lines[(lines["question"] == CIRCUIT) & (lines["method"] == "patching, exact")]
    assert circuit["auroc"].item() == 1
    assert {"precision", "precision_low", "auroc", "chance"} <= set(summarised(lines))


def test_unknown_programs_and_tasks_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="hist"):
        program("histt")
    with pytest.raises(UserError, match="ioi"):
        tasks.task("io", 4, 0)


@pytest.mark.parametrize("name", ["ioi", "arithmetic"])
def test_contrasts_differ_where_the_answer_is_decided(name: str) -> None:
    rows = tasks.task(name, 40, 0)
    for row, other in zip(rows, rows.contrasts, strict=True):
        words, others = str(row.shown).split(), str(other.shown).split()
        assert row.answer != row.distractor and len(words) == len(others)
        assert sum(a != b for a, b in zip(words, others, strict=True)) == 1
    assert rows.hash == tasks.task(name, 40, 0).hash != tasks.task(name, 40, 1).hash


def test_a_model_that_knows_no_city_is_refused_by_ravel() -> None:
    assert len(data()["cities"]) >= 30 and "MIT" in data()["from"]
    with pytest.raises(UserError, match="too few"):
        known(AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny"))


def test_exchanging_every_dimension_at_the_last_token_says_what_the_other_says() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")
    ids = {"t": [[1, 20 + place, 40 + place] for place in range(6)]}
    there = Known(tuple("abcdef"), ids, {"t": [-1] * 6}, {}, {}, {"last": ["t"]}, {})
    last, seen = model.n_layers - 1, []
    with model.hooked([SiteHook(Site("resid_post", last), lambda value, _ctx: seen.append(value))]):
        plain = model.forward(there.batch("t", list(range(6))), logits="last")
    assert plain is not None
    states, pairs = seen[0][:, -1], [(0, 3), (4, 1)]
    whole = swapped(model, there, "t", last, pairs, torch.eye(model.d_model), states)
    torch.testing.assert_close(whole, plain[[3, 1], -1], atol=1e-4, rtol=1e-4)
    components = principal(2)(model, there, "last", lambda _template: states, last)
    partly = swapped(model, there, "t", last, pairs, components, states)
    assert (partly - plain[[0, 4], -1]).abs().max() > 1e-3 and (partly - whole).abs().max() > 1e-3


def test_sections_of_the_document_are_written_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "outside.md"
    table = pd.DataFrame({"method": ["a"], "auroc": [0.5], "auroc_low": [0.25], "auroc_high": [0.75]})
    put_section(path, "tracr", table, "written first")
    put_section(path, "mib", table, "beside")
    put_section(path, "tracr", table.assign(auroc=0.625), "written second")
    text = path.read_text()
    assert "second" in text and "first" not in text and "beside" in text and "0.625 [0.25, 0.75]" in text


def test_a_section_names_its_command_seeds_and_time() -> None:
    lines = pd.DataFrame({"seed": [0, 0, 2], "seconds": [30.0, 30.0, 150.0]})
    options = {"model": "a b", "prompts": 12, "programs": None}
    said = measured_by(command_line("mib", options), lines, "a CPU")
    assert (
        said
        == "Measured by `tunescope bench mib 'a b' --prompts 12`: seeds 0, 2; 4 minutes of processor time, on a CPU."
    )
    (first, other) = timed(lambda: [{"x": sum(range(10**6))}, {"x": 0}])
    assert first["seconds"] == other["seconds"] > 0 and timed(list) == []


def test_the_published_tables_are_written_with_three_seeds_by_options_that_exist() -> None:
    group = get_command(app).commands["bench"]  # type: ignore[attr-defined]
    for kind, options in PUBLISHED_SETTINGS.items():
        known = {parameter.name for parameter in group.commands[kind].params}
        assert set(options) <= known and options["seeds"] >= 3


def test_published_orders_stand_beside_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "outside.md"
    table = pd.DataFrame({"task": "ioi", "method": ["EAP", "random", "EAP-IG"], "cpr": [1.0, 0.25, 0.5],
                          "cpr_least": [0.75, 0.25, 0.5], "cpr_most": [1.25, 0.25, 0.625]})  # fmt: skip
    put_section(path, "mib", table, "measured")
    read = section_table(path.read_text(), "mib").set_index("method")
    assert read.loc["EAP", ["cpr", "cpr_low", "cpr_high"]].tolist() == [1.0, 0.75, 1.25]
    orders = compared(path.read_text())
    assert orders["verdict"].tolist() == ["reversed", "holds"]
    assert "| EAP-IG: 0.5 [0.5, 0.625] | EAP: 1 [0.75, 1.25] | reversed |" in path.read_text()
    put_section(path, "mib", table.assign(cpr_least=0.25, cpr_most=2.0), "again")
    assert compared(path.read_text())["verdict"].tolist() == ["undecided", "undecided"]


def test_the_committed_document_has_every_suite_and_its_orders() -> None:
    text = (Path(__file__).parents[3] / "benchmarks" / "outside.md").read_text()
    orders = compared(text)
    assert text.startswith(HEAD)
    assert set(orders["suite"]) == {"tracr", "mib", "ravel"} and len(orders) >= 14
    assert all(line in text for line in table_lines(orders)), "the first table is that of the sections"


def test_the_command_measures_a_program(tmp_path: Path) -> None:
    document = tmp_path / "outside.md"
    options = ["--programs", "two-back", "--out", str(tmp_path / "run"), "--json", "--markdown", str(document)]
    result = CliRunner().invoke(app, ["bench", "tracr", *options], catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.stdout)["rows"]
    assert "two-back" in document.read_text()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (["ravel", "--attributes", "Contry"], "Unknown attribute of RAVEL 'Contry'. Did you mean 'Country'?"),
        (["mib", "--tasks", "io"], "Unknown MIB task 'io'. Did you mean 'ioi'?"),
        (["tracr", "--programs", "histo"], "Unknown Tracr program 'histo'. Did you mean 'hist'?"),
    ],
)
def test_a_wrong_name_is_told_before_a_model_is_loaded(
    call: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunescope.cli.bench_outside._loaded", lambda _model: pytest.fail("a model was loaded"))
    done = CliRunner().invoke(app, ["bench", *call])
    assert done.exit_code != 0 and sentence in str(done.exception)


@pytest.mark.parametrize(
    ("call", "columns"),
    [
        (["mib", "--prompts", "12", "--seeds", "2"], {"task": "ioi", "forward": 1584, "backward": 144}),
        (["ravel", "--attributes", "Country", "--seeds", "1"], {"attribute": "Country", "backward": 2880}),
        (["tracr", "--programs", "previous"], {"program": "previous"}),
    ],
)
def test_a_dry_run_counts_passes_and_loads_no_chat_model(
    call: list[str], columns: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunescope.cli.bench_outside._loaded", lambda _model: pytest.fail("a model was loaded"))
    done = CliRunner().invoke(app, ["bench", *call, "--dry-run", "--json"], catch_exceptions=False)
    first = json.loads(done.stdout)["cost"][0]
    assert done.exit_code == 0 and columns.items() <= first.items() and len(first) > len(columns) - 1
