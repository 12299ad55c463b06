"""``tunescope run``: dry runs, sentences instead of tracebacks, JSON, and the optional tracker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope import cli
from tunescope.cli.app import app
from tunescope.experiments import Experiment
from workbench import runs

CLI = CliRunner()
TEXT = """
name: small
pair: {base: base, tuned: tuned, device: cpu}
prompts:
  rows:
    - {prompt: the quick brown, answer: " fox"}
    - {prompt: jumps over, answer: " lazy"}
    - {prompt: the, answer: " dog"}
recipes: {push: [{kind: HeadScale, scales: {L0H1: 0}}]}
steps:
  effect: {do: diff, recipes: [push], metrics: [prob]}
  slope: {do: dose, recipe: push, strengths: [0, 1], metrics: [prob]}
sweep: {recipes.push.strength: [0, 1]}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("experiment")
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    (home / "x.yaml").write_text(TEXT)
    return home / "x.yaml"


def test_a_dry_run_lists_cells_and_steps_and_loads_no_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run loaded a model")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", loaded)
    done = CLI.invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--dry-run", "--json"])
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    assert [cell["settings"] for cell in said["cells"]] == [{"recipes.push.strength": 0}, {"recipes.push.strength": 1}]
    assert [(step["step"], step["does"], step["recipes"]) for step in said["steps"]] == [
        ("effect", "diff", "push"),
        ("slope", "dose", "push"),
    ]
    assert said["run"] == str(tmp_path / "run") and not (tmp_path / "run").exists()
    shown = CLI.invoke(app, ["run", str(file), "--dry-run"])
    assert "2 steps in each of 2 cells" in shown.stdout and "push.strength=1" in shown.stdout


def test_the_run_says_what_its_tables_hold(file: Path, tmp_path: Path) -> None:
    done = CLI.invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    table = pd.read_parquet(tmp_path / "run" / "tables" / "metrics.parquet")
    assert runs.verify(tmp_path / "run").ok and runs.open(tmp_path / "run").manifest.kind == "experiment"
    assert [row["estimate"] for row in said["metrics"]] == table["estimate"].tolist()
    shown = CLI.invoke(app, ["run", str(file), "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0 and "tunescope report" in shown.stdout and "push" in shown.stdout
    listed = CLI.invoke(app, ["runs", "show", str(tmp_path / "run"), "--json"])
    assert listed.exit_code == 0 and "small" in listed.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "phrase"),
    [
        ("metrics: [prob]", "metrcs: [prob]", "steps.effect.metrcs: unknown key 'metrcs'. Did you mean 'metrics'?"),
        ("tuned: tuned", "tuned: none", "none"),
        ("L0H1: 0", "L0H9: 0", "step effect: HeadScale (number 0 of the recipe): Head L0H9 is out of range"),
        ("scales: {L0H1: 0}", "scales: {L0H1: [0, 0]}", "width 2"),
    ],
)
def test_a_mistake_is_one_sentence(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], right: str, wrong: str, phrase: str
) -> None:
    broken = file.parent / "broken.yaml"
    broken.write_text(TEXT.replace(right, wrong, 1))
    assert cli.run(["run", str(broken), "--out", str(tmp_path / "run")]) == 1
    *before, said = capsys.readouterr().err.splitlines()
    assert said.startswith("Error: ") and phrase in said
    assert not any("Traceback" in line for line in before) and not (tmp_path / "run").exists()


def test_files_that_are_not_there_fail_before_anything_is_loaded(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["run", str(tmp_path / "none.yaml")]) == 1
    assert "There is no file" in capsys.readouterr().err
    broken = file.parent / "broken.yaml"
    broken.write_text(TEXT.replace("[{kind: HeadScale, scales: {L0H1: 0}}]", "{file: none.safetensors}"))
    assert cli.run(["run", str(broken), "--dry-run"]) == 1
    assert "none.safetensors, which" in capsys.readouterr().err
    assert cli.run(["run", str(file), "--trakcer", "wandb"]) == 2


@pytest.mark.parametrize("swept", [False, True])
def test_a_dry_run_refuses_prompts_that_leave_no_row(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, swept: bool
) -> None:
    """With the sentence of the run itself."""
    rows = [{"prompt": f"the {word}", "answer": " fox", "label": "magic"} for word in ("quick", "lazy")]
    (file.parent / "labelled.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    label, sweep = ("magic", "[magic, majic]") if swept else ("majic", "[majic]")
    text = TEXT.split("prompts:")[0] + f"prompts: {{file: labelled.jsonl, where: {{label: {label}}}}}\n"
    text += "steps: {effect: {do: diff, metrics: [prob]}}\n"
    broken = file.parent / "broken.yaml"
    broken.write_text(text + (f"sweep: {{prompts.prompts.where.label: {sweep}}}\n" if swept else ""))
    said = []
    for more in ([], ["--dry-run"]):
        assert cli.run(["run", str(broken), "--out", str(tmp_path / "run"), *more]) == 1
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and "none of 2 rows is left by where, skip and limit" in said[0]
    assert not (tmp_path / "run").exists()


def test_a_pickle_in_the_place_of_a_tensor_is_not_opened(file: Path, tmp_path: Path) -> None:
    """Only safetensors are read, whatever the name ends in."""
    import pickle

    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    (file.parent / "bad.safetensors").write_bytes(pickle.dumps(Bad()))
    broken = file.parent / "broken.yaml"
    broken.write_text(TEXT.replace("[{kind: HeadScale, scales: {L0H1: 0}}]", "{file: bad.safetensors}"))
    assert cli.run(["run", str(broken), "--out", str(tmp_path / "run")]) == 1
    offset = "[{kind: Offset, layer: 0, vector: {file: bad.safetensors}}]"
    broken.write_text(TEXT.replace("[{kind: HeadScale, scales: {L0H1: 0}}]", offset))
    assert cli.run(["run", str(broken), "--out", str(tmp_path / "run")]) == 1
    assert not (tmp_path / "touched").exists()


def test_a_model_that_writes_markup_is_shown_as_text(file: Path, tmp_path: Path) -> None:
    from dashboards.report import write_report

    hostile = "<script>alert(1)</script> \x1b[31m the quick"
    text = TEXT.replace("{prompt: the, answer", "{prompt: " + json.dumps(hostile) + ", answer")
    text = text.replace("steps:", "steps:\n  texts: {do: generate, recipes: [push], max_new_tokens: 1}")
    other = file.parent / "hostile.yaml"
    other.write_text(text)
    done = CLI.invoke(app, ["run", str(other), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.exception
    assert "\x1b[31m" not in done.stdout
    page = write_report(tmp_path / "run", tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


def test_wandb_gets_config_metrics_and_tables_offline(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: dict[str, Any] = {"log": []}
    real = wandb.init

    def watched(**options: Any) -> Any:
        seen["init"] = options
        run = real(**options)
        log = run.log
        monkeypatch.setattr(run, "log", lambda values, step: (seen["log"].append((step, values)), log(values, step)))
        return run

    monkeypatch.setattr(wandb, "init", watched)
    done = CLI.invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--tracker", "wandb", "--json"])
    assert done.exit_code == 0, done.exception
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"effect/push/prob" in written.read_bytes() and b"metrics.parquet" in written.read_bytes()
    assert seen["init"]["config"]["experiment"] == Experiment.load(file).plain()
    assert [step for step, _ in seen["log"]] == [0, 1]
    table = runs.open(tmp_path / "run").read_table("tables/metrics")
    row = table[(table["cell"] == 1) & (table["step"] == "effect") & (table["of"] == "push")].iloc[0]
    assert seen["log"][1][1]["effect/push/prob"] == row["estimate"]


def test_a_tracker_that_is_not_there_is_said_before_anything_is_computed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert cli.run(["run", str(file), "--out", str(tmp_path / "run"), "--tracker", "mlflow"]) == 1
    assert "The tracker mlflow is not installed: install with  pip install mlflow" in capsys.readouterr().err
    assert cli.run(["run", str(file), "--out", str(tmp_path / "run"), "--tracker", "mflow"]) == 1
    assert "There is no tracker 'mflow'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_tracker_is_imported_unless_asked_for(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunescope.experiments import trackers

    monkeypatch.setattr(trackers, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    done = CLI.invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.exception


def test_a_tensor_from_a_file_beside_the_yaml(file: Path, tmp_path: Path) -> None:
    import torch

    save_file({"v": torch.ones(64)}, file.parent / "v.safetensors")
    other = file.parent / "vector.yaml"
    offset = "[{kind: Offset, layer: 0, vector: {file: v.safetensors}}]"
    other.write_text(TEXT.replace("[{kind: HeadScale, scales: {L0H1: 0}}]", offset))
    done = CLI.invoke(app, ["run", str(other), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.exception
    assert "v.safetensors" in runs.open(tmp_path / "run").config["files"]
    save_file({"v": torch.zeros(64)}, file.parent / "v.safetensors")
    again = CLI.invoke(app, ["run", str(other), "--out", str(tmp_path / "run"), "--json"])
    assert again.exit_code == 1 and "'files.v.safetensors'" in str(again.exception)


SIDE_BY_SIDE = {
    "generation_config.json": ({"repetition_penalty": 1.3}, "repetition_penalty: None in the base, 1.3 in the tuned"),
    "config.json": ({"rms_norm_eps": 0.25}, "config's rms_norm_eps differs: 1e-06 in the base, 0.25 in the tuned"),
    "tokenizer_config.json": ({"chat_template": "{{ messages[0].content }}"}, "The chat templates differ"),
}


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_what_differs_beside_the_weights_is_said_and_stays_in_the_report(file: Path, tmp_path: Path, name: str) -> None:
    changed, sentence = SIDE_BY_SIDE[name]
    for side in ("base", "tuned"):
        shutil.copytree(file.parent / side, tmp_path / side)
    own = tmp_path / "tuned" / name
    own.write_text(json.dumps({**json.loads(own.read_text()), **changed}))
    (tmp_path / "x.yaml").write_text(TEXT.split("sweep:")[0])
    for _ in ("run", "finished already"):
        done = CLI.invoke(app, ["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run"), "--json"])
        assert done.exit_code == 0, done.exception
        assert done.stderr.count(sentence) == 1 and sentence not in done.stdout
    told = runs.open(tmp_path / "run").read_json("sections")
    assert sentence in told[0]["text"]


def test_nothing_is_said_of_two_models_that_differ_in_weights_alone(file: Path, tmp_path: Path) -> None:
    (file.parent / "alike.yaml").write_text(TEXT.split("sweep:")[0])
    done = CLI.invoke(app, ["run", str(file.parent / "alike.yaml"), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0 and "differ" not in done.stderr, done.stderr
