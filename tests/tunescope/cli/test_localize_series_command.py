"""``tunescope localize series-curve`` with the rows that every member was trained on, a file for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probes
import workbench as wb
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.cli.app import app
from workbench import runs
from workbench.errors import UserError
from workbench.prompts import Prompts

CLI = CliRunner()
MEMBERS = ("checkpoint-1", "checkpoint-2", "tuned")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, base = tmp_path_factory.mktemp("series"), tiny_model("llama")
    made = {"base": base} | {
        name: tuned_copy(base, seed=seed, size=0.1 * seed)
        for seed, name in enumerate(("steps/checkpoint-1", "steps/checkpoint-2", "tuned"), start=1)
    }
    for name, model in made.items():
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    words = ("fox", "dog", "lazy", "quick", "brown", "over")
    rows = [
        {"prompt": f"{start} {word}", "answer": f" {words[number - 1]}"}
        for start in ("the", "a")
        for number, word in enumerate(words)
    ]
    for number, name in enumerate(MEMBERS):
        Prompts.of(rows[number : number + 3]).save(home / f"{name}.jsonl")
    Prompts.of(rows).save(home / "p.jsonl")
    return home


def call(home: Path, *more: str) -> Any:
    models = [str(home / "base"), str(home / "tuned"), "--prompts", str(home / "p.jsonl")]
    return CLI.invoke(app, ["localize", "series-curve", *models, "--checkpoints", str(home / "steps"), *more])


def test_training_sets_are_files_by_the_members_names(home: Path, tmp_path: Path) -> None:
    sets = [part for name in MEMBERS for part in ("--trained-on", f"{name}={home / f'{name}.jsonl'}")]
    done = call(home, *sets, "--draws", "50", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.exception
    assert runs.verify(tmp_path / "run").ok
    kept: Any = probes.ProbeResult.load(tmp_path / "run" / "result.safetensors")
    pair = wb.load_pair(str(home / "base"), str(home / "tuned"), device="cpu", dtype="float32")
    learnt = {name: Prompts.load(home / f"{name}.jsonl") for name in MEMBERS}
    by_python = probes.series_curve(
        pair, Prompts.load(home / "p.jsonl"), checkpoints=[str(home / "steps")], trained_on=learnt, draws=50
    )
    assert kept.perplexity["member"].tolist() == list(MEMBERS)
    assert kept.perplexity["perplexity"].tolist() == pytest.approx(by_python.perplexity["perplexity"].tolist())
    assert by_python.predictor is not None and kept.predictor == pytest.approx(by_python.predictor)
    step = runs.open(tmp_path / "run").config["experiment"]
    assert set(step["steps"]["series-curve"]["trained_on"]) == set(MEMBERS) and json.dumps(step)


def test_a_member_without_its_set_is_named_and_nothing_is_written(home: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    done = call(home, "--trained-on", f"tuned={home / 'p.jsonl'}", *out)
    assert isinstance(done.exception, UserError) and "no training set for checkpoint-1" in str(done.exception)
    done = call(home, "--trained-on", f"tuned={home / 'absent.jsonl'}", *out)
    assert isinstance(done.exception, UserError) and "absent.jsonl" in str(done.exception)
    assert not (tmp_path / "run").exists()
