"""Trainings and behaviours as steps and commands: made from the registry, refused in a sentence, the same as Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interventions as iv
from interventions.training.log import TrainingLog
from interventions.training.scales import HeadScales
from interventions.training.soft_prompt import SoftPrompt
from tests.tunescope.cli.example_folders import of_lessons
from tunescope.cli.app import app
from tunescope.experiments import Experiment, run_experiment
from tunescope.experiments.call_forms import call_forms, step_of
from tunescope.experiments.method_steps import step_names, step_type
from workbench import load_model, load_pair
from workbench.behaviour import behaviour_diff, self_critique
from workbench.errors import UserError
from workbench.method_index import all_methods
from workbench.methods import Method
from workbench.prompts import Prompts
from workbench.results import Result

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
OTHERS = [method for kind in ("training", "behaviour") for method in all_methods(kind)]  # type: ignore[arg-type]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    of_lessons(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "method", [one for one in OTHERS if one.group in ("training", "behaviour")], ids=lambda method: method.name
)
def test_every_training_and_behaviour_is_a_step_with_its_defaults(method: Method) -> None:
    fields = step_type(method.name).model_fields
    for option in method.options:
        if option.kind != "python":
            assert option.name in fields and (option.required == fields[option.name].is_required())
    assert method.command in step_names()
    assert ("within" in fields) == (method.arguments[0] == "model")


def test_a_training_is_the_same_by_command_by_step_and_in_python(here: Path) -> None:
    words = ["train", "masked-tuning", "base", "--prompts", "p.jsonl", "--share", "0.1", "--epochs", "1", "--seed", "3"]
    done = CliRunner().invoke(app, [*words, "--out", "run", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    log = TrainingLog.load("run/result.safetensors")
    assert len(said["rows"]) == len(log.table) == 2 and log.outcome["selections"] == 1
    model = load_model("base")
    schedule = iv.Schedule(epochs=1, learning_rate=1e-4, seed=3)
    iv.masked_finetune(model, Prompts.load("p.jsonl"), share=0.1, schedule=schedule)
    made, again = (
        load_pair("base", "run/trained").tuned,
        run_experiment(Experiment.load("run/experiment.yaml"), "again", folder="run"),
    )
    (folder,) = again.run.path.glob("steps/*/trained")
    repeated = load_pair("base", folder).tuned
    wanted = dict(model.hf.named_parameters())
    for name, parameter in made.hf.named_parameters():
        assert torch.equal(parameter, wanted[name]) and torch.equal(parameter, repeated.hf.get_parameter(name))
    step = step_of(log.provenance)
    assert step == {"do": "train masked-tuning", "share": 0.1, "epochs": 1, "seed": 3}
    forms = call_forms(log.provenance, base="base", prompts="p.jsonl")
    assert (
        "schedule=iv.Schedule(epochs=1.0, batch_size=8, learning_rate=0.0001" in forms.python
        and "seed=3" in forms.python
    )
    assert forms.command.split()[1:4] == ["train", "masked-tuning", "base"]
    scope: dict[str, object] = {}
    exec(forms.python, scope)
    made_again = scope["result"].model.hf  # type: ignore[attr-defined]
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in made_again.named_parameters())


def test_a_behaviour_is_the_same_by_command_and_in_python(here: Path) -> None:
    words = ["measure", "behaviour-diff", "base", "tuned", "--prompts", "p.jsonl", "--metrics", "accuracy,kl"]
    done = CliRunner().invoke(app, [*words, "--recipe", "offset.safetensors", "--controls", "10", "--out", "run"])
    assert done.exit_code == 0, done.output
    table = Result.load("run/result.safetensors").table.set_index(["model", "metric"])["estimate"]
    pair = load_pair("base", "tuned")
    wanted = behaviour_diff(pair, Prompts.load("p.jsonl"), {"offset": iv.Recipe.load("offset.safetensors")},
                            metrics=["accuracy", "kl"]).table.set_index(["model", "metric"])["estimate"]  # fmt: skip
    for cell, value in wanted.items():
        assert table[cell] == pytest.approx(value)
    assert ("random offset", "kl") in table.index
    again = run_experiment(Experiment.load("run/experiment.yaml"), "again", folder="run")
    (file,) = again.run.path.glob("steps/*/result.safetensors")
    assert Result.load(file).table.set_index(["model", "metric"])["estimate"].equals(table)


def test_one_number_per_prompt_is_a_result_with_its_mean(here: Path) -> None:
    words = ["measure", "self-critique", "base", "tuned", "--prompts", "p.jsonl", "--yes", " fox", "--no", " dog",
             "--max-new-tokens", "2", "--within", "base", "--out", "run"]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = Result.load("run/result.safetensors")
    wanted = self_critique(load_model("base"), Prompts.load("p.jsonl"), yes=" fox", no=" dog", max_new_tokens=2)
    np.testing.assert_allclose(found.table["score"], wanted, rtol=1e-5)
    others = self_critique(
        load_model("base"), Prompts.load("p.jsonl"), yes=" fox", no=" dog", max_new_tokens=2, exchanged=True
    )
    np.testing.assert_allclose(found.table["control"], others, rtol=1e-5)
    assert ", control " in found.summary()
    assert found.summary().startswith(
        "The model's own probability, between 0 and 1, that its answer to each prompt is right: mean "
    )
    assert found.mean["low"] <= found.table["score"].mean() <= found.mean["high"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "masked-tuning", "nowhere", "--prompts", "p.jsonl"], "no base model|nowhere"),
        (["train", "masked-tuning", "base", "--prompts", "none.jsonl"], "no file none.jsonl"),
        (
            ["measure", "behaviour-diff", "base", "tuned", "--prompts", "p.jsonl", "--recipe", "none.safetensors"],
            "none",
        ),
        (["measure", "known-unknown", "base", "tuned", "--prompts", "texts.txt"], "needs a column 'answer'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(here: Path, words: list[str], expected: str) -> None:
    (here / "texts.txt").write_text("the fox\nthe dog\n")
    with pytest.raises(UserError, match=expected):
        CliRunner().invoke(app, [*words, "--out", "run"], catch_exceptions=False)
    assert not (here / "run").exists()


def test_a_dry_run_says_the_cost_and_writes_nothing(here: Path) -> None:
    words = ["train", "caft", "base", "--prompts", "p.jsonl", "--dry-run", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "method": "caft", "prompts": 16, "cost": next(one.cost for one in OTHERS if one.name == "caft"),
    }  # fmt: skip
    timed = CliRunner().invoke(app, [*words, "--timed"])
    assert timed.exit_code == 0 and json.loads(timed.stdout)["phases"][0]["units"] and not (here / "runs").exists()


def test_what_is_learned_beside_a_model_is_read_again(tmp_path: Path) -> None:
    scales = HeadScales(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), ())
    assert torch.equal(HeadScales.load(scales.save(tmp_path / "scales.safetensors")).scales, scales.scales)
    soft = SoftPrompt(torch.ones(2, 4), 7)
    held = SoftPrompt.load(soft.save(tmp_path / "soft.safetensors"))
    assert held.placeholder == 7 and torch.equal(held.vectors, soft.vectors)
