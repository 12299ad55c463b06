"""``--null`` and ``null_adapters:`` put any probe of a pair among null adapters; a whole model is refused unloaded."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from typer.testing import CliRunner

from probes.against_null_adapters import AgainstNulls
from probes.results import ProbeResult
from tests.tiny import tiny_model, tokenizer
from tunescope.cli.app import app
from tunescope.experiments.call_forms import call_forms
from tunescope.experiments.method_run import RESULT
from tunescope.experiments.method_steps import step_type, takes_null
from workbench.errors import UserError
from workbench.method_index import all_methods


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, an adapter of it, and prompts."""
    folder = tmp_path_factory.mktemp("nulls")
    torch.manual_seed(0)
    base = tiny_model("llama")
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    settings = {"r": 2, "target_modules": ["down_proj", "o_proj"], "init_lora_weights": False}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "tuned", save_embedding_layers=False)
    rows = [
        {"prompt": f"the {word} fox", "answer": " fox", "distractor": " dog"} for word in ("quick", "lazy", "brown")
    ]
    (folder / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def called(home: Path, *words: str, tuned: str = "tuned") -> AgainstNulls:
    out = home / "-".join(words).replace("--", "")
    command = ["localize", words[0], str(home / "base"), str(home / tuned), "--prompts", str(home / "p.jsonl")]
    done = CliRunner().invoke(app, [*command, *words[1:], "--out", str(out), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    found = ProbeResult.load(out / RESULT)
    assert isinstance(found, AgainstNulls)
    return found


def test_every_probe_of_a_pair_takes_it_in_files_and_on_the_command_line() -> None:
    for method in all_methods("probe"):
        assert ("null_adapters" in step_type(method.name).model_fields) == takes_null(method)
    for name in ("lens", "heads", "edges", "activations", "layers"):
        done = CliRunner().invoke(app, ["localize", name, "--help"], env={"COLUMNS": "200"})
        assert "--null" in done.stdout, name


def test_a_probe_of_a_pair_has_a_place_among_nulls(home: Path) -> None:
    found = called(home, "lens", "--null", "19")
    assert len(found.nulls) == 19 and found.table["q"].between(0, 1).all() and found.nulls["best"].nunique() > 1
    assert found.p_best >= 0.05
    forms = call_forms(found.provenance)
    assert "null_adapters: 19" in forms.yaml and "--null-adapters 19" in forms.command
    assert (
        "probes.against_nulls(lambda pair: probes.logit_lens(pair, prompts, layers=[0, 1, 2]), pair, nulls=19)"
        in forms.python
    )


def test_cells_that_differ_are_set_beside_the_largest_of_each_null(home: Path) -> None:
    """A probe that keeps its largest edges keeps others for every adapter."""
    rows = [json.loads(line) for line in (home / "p.jsonl").read_text().splitlines()]
    contrasts = [{**row, "contrast": row["prompt"].replace("fox", "dog")} for row in rows]
    (home / "p.jsonl").write_text("\n".join(json.dumps(row) for row in contrasts))
    found = called(home, "edges", "--kept", "5", "--draws", "20", "--null", "19")
    assert found.table["control"].nunique() == 1 and found.table["p"].min() >= found.p_best
    assert "largest score of each" in found.control


def test_a_recording_is_made_anew_for_every_null(home: Path) -> None:
    found = called(home, "activations", "--null", "shuffled")
    assert len(found.nulls) == 19 and found.nulls["best"].nunique() > 1 and "shuffled" in found.control
    assert "wb.record(pair, prompts" in call_forms(found.provenance).python


@pytest.mark.parametrize(
    ("null", "tuned", "said"),
    [("19", "base", "whole model"), ("3", "tuned", "19"), ("some", "tuned", "random")],
)
def test_what_no_null_can_stand_in_for_is_one_sentence(
    home: Path, null: str, tuned: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.models.pair.load_pair", lambda *_, **__: pytest.fail("a model was loaded"))
    command = ["localize", "lens", str(home / "base"), str(home / tuned), "--prompts", str(home / "p.jsonl")]
    done = CliRunner().invoke(app, [*command, "--null", null])
    assert isinstance(done.exception, UserError) and said in str(done.exception)
