"""``tunescope localize``: the run holds the result that Python gives; a refusal writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import probes
from probes.results import ProbeResult
from tests.tiny import tiny_model
from tunescope.cli.localize import app
from tunescope.experiments.call_forms import caution_of
from workbench import runs
from workbench.errors import UserError
from workbench.method_index import load_method
from workbench.models.pair import load_pair

CLI = CliRunner()


def pair(home: Path, family: str) -> list[str]:
    return [str(home / f"{family}-base"), str(home / f"{family}-tuned")]


@pytest.mark.parametrize(
    ("verb", "family", "more"),
    [
        ("weights", "llama", []),
        ("activations", "llama", ["--prompts", "p.jsonl", "--sites", "z"]),
        ("heads", "llama", ["--prompts", "p.jsonl", "--layers", "0,1"]),
        ("concepts", "llama", ["--prompts", "p.jsonl", "--layer", "1"]),
        ("experts", "mixtral", ["--prompts", "p.jsonl", "--target", "a"]),
    ],
)
def test_each_verb_writes_a_run_that_says_the_same(
    home: Path, tmp_path: Path, verb: str, family: str, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    done = CLI.invoke(app, [verb, *pair(home, family), *more, "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.exception
    said: dict[str, Any] = json.loads(done.stdout)
    assert runs.verify(tmp_path / "run").ok
    kept = ProbeResult.load(tmp_path / "run" / "result.safetensors")
    table = pd.read_parquet(tmp_path / "run" / "table.parquet")
    assert len(said["rows"]) == len(table) == len(kept.frame()) > 0
    assert said["rows"][0]["score"] == pytest.approx(table["score"][0], nan_ok=True)
    assert {"layer", "score", "low", "high", "control", "q"} <= set(table)
    assert json.loads((tmp_path / "run" / "figures" / "figure.json").read_text())["data"]


def test_what_q_is_no_evidence_of_is_said_beside_the_result(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    caution = load_method("lens").caution
    call = ["lens", *pair(home, "llama"), "--prompts", "p.jsonl"]
    done = CLI.invoke(app, [*call, "--out", str(tmp_path / "text")])
    assert done.exit_code == 0 and done.stderr.strip().endswith(caution) and caution not in done.stdout
    parsed = json.loads(CLI.invoke(app, [*call, "--out", str(tmp_path / "parsed"), "--json"]).stdout)
    assert parsed["caution"] == caution
    weights = CLI.invoke(app, ["weights", *pair(home, "llama"), "--out", str(tmp_path / "w"), "--json"])
    assert "caution" not in json.loads(weights.stdout)
    stored = ProbeResult.load(tmp_path / "text" / "result.safetensors")
    assert caution_of(stored.provenance) == caution


def test_weights_from_the_command_line_are_those_from_python(home: Path, tmp_path: Path) -> None:
    CLI.invoke(app, ["weights", *pair(home, "llama"), "--out", str(tmp_path / "run")])
    direct = probes.weight_delta(*pair(home, "llama")).frame()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "table.parquet"), direct, check_dtype=False)


def test_the_seed_reaches_a_probe_that_reads_files_alone(home: Path, tmp_path: Path) -> None:
    given = pair(home, "llama")
    done = CLI.invoke(app, ["anatomy", *given, "--seed", "3", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.exception
    table, drawn = pd.read_parquet(tmp_path / "run" / "table.parquet"), probes.update_anatomy(*given, seed=3).frame()
    pd.testing.assert_frame_equal(table, drawn, check_dtype=False)
    assert not drawn.equals(probes.update_anatomy(*given).frame())


def test_a_timed_dry_run_says_seconds_and_keeps_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["heads", *pair(home, "llama"), "--prompts", str(home / "p.jsonl"), "--metric", "kl", "--timed"]
    whole = json.loads(CLI.invoke(app, [*given, "--dry-run", "--json"]).stdout)
    assert whole["ran_to_the_end"] and whole["phases"][0]["phase"] == "Patching" and whole["phases"][0]["seconds"] > 0
    monkeypatch.setattr("workbench.first_batch.LONG", -1.0)
    said = " ".join(CLI.invoke(app, [*given, "--dry-run"]).stdout.split())
    assert "Patching about" in said and "was not reached" in said and not (tmp_path / "runs").exists()
    alone = CLI.invoke(app, given)
    assert alone.exit_code == 2 and "dry-run with it" in " ".join(alone.output.replace("│", " ").split())


def test_a_refusal_writes_nothing(home: Path, tmp_path: Path) -> None:
    asked = ["experts", *pair(home, "llama"), "--prompts", str(home / "p.jsonl"), "--target", "a"]
    done = CLI.invoke(app, [*asked, "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, UserError) and "dense" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_its_files_do_not_tell_is_loaded(home: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "dora")
    given = [str(home / "llama-base"), str(tmp_path / "dora")]
    done = CLI.invoke(app, ["weights", *given, "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.exception
    (line,) = [line for line in done.stderr.splitlines() if "loaded" in line]
    why = "is a DoRA adapter, whose change cannot be read from its files alone"
    assert line == f"{given[1]} {why}, so both models are loaded."
    direct = probes.weight_delta(load_pair(*given, device="cpu")).frame()
    table = pd.read_parquet(tmp_path / "run" / "table.parquet")
    pd.testing.assert_frame_equal(table, direct, check_dtype=False)
    assert set(table.loc[table["score"] > 0, "module"]) == {"self_attn.q_proj"}
