"""``tunescope localize paths | circuit | cmap | components`` on the hand-built induction model, found on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probes.results import ProbeResult
from tests.probes.paths.planted import induction_model, repeated_pairs
from tunescope.cli.app import app
from workbench import runs
from workbench.errors import UserError

CLI = CliRunner()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("induction")
    for name, seed in (("base", 0), ("tuned", 1)):
        model = induction_model(seed)
        model.hf.save_pretrained(home / name)
        model.tokenizer.save_pretrained(home / name)
    rows = repeated_pairs(32)
    rows.save(home / "p.jsonl")
    turned = [
        {"prompt": row.prompt, "contrast": rows[(n + 1) % 32].prompt, "answer": rows[(n + 1) % 32].answer}
        for n, row in enumerate(rows)
    ]
    (home / "value.jsonl").write_text("\n".join(json.dumps(row) for row in turned))
    return home


def asked(home: Path, verb: str, *more: str) -> Any:
    return CLI.invoke(app, ["localize", verb, str(home / "base"), str(home / "tuned"), *more, "--device", "cpu"])


def test_each_verb_finds_the_planted_heads(home: Path, tmp_path: Path) -> None:
    prompts = ["--prompts", str(home / "p.jsonl")]
    cases = {
        "paths": [*prompts, "--receivers", "L1H0", "--through", "k", "--position", "after", "--within", "base"],
        "circuit": [*prompts, "--heads", "after=L0H0;last=L1H0", "--reference", str(home / "p.jsonl")],
        "cmap": [*prompts, "--heads", "L0H0,L0H1,L1H0,L1H1", "--metric", "logit_diff"],
        "components": ["--prompts", str(home / "value.jsonl"), "--penalties", "0.1", "--epochs", "6"],
    }
    for verb, more in cases.items():
        done = asked(home, verb, *more, "--out", str(tmp_path / verb), "--json")
        assert done.exit_code == 0, done.exception
        said = json.loads(done.stdout)
        assert runs.verify(tmp_path / verb).ok and said["rows"]
        kept: Any = ProbeResult.load(tmp_path / verb / "result.safetensors")
        assert said["rows"][0]["score"] == pytest.approx(kept.frame()["score"][0])
        assert json.loads((tmp_path / verb / "figures" / "figure.json").read_text())["data"]
        if verb == "paths":
            assert kept.best(1) == ["L0H0"] and kept.frame().score[0] < -0.5
        elif verb == "cmap":
            assert kept.table.score.to_numpy() == pytest.approx(kept.table.other.to_numpy(), abs=0.01)
        elif verb == "circuit":
            assert (kept.table.score == 1).all() and set(kept.table.model) == {"base", "tuned"}
        else:
            assert kept.heads("value", "tuned") == ["L1H0"] and (kept.table.score == 1).all()


def test_mistakes_are_told_and_nothing_is_written(home: Path, tmp_path: Path) -> None:
    prompts, out = ["--prompts", str(home / "p.jsonl")], ["--out", str(tmp_path / "run")]
    for verb, more in (
        ("paths", [*prompts, "--receivers", "L7H0"]),
        ("circuit", [*prompts, "--heads", "last=L1E0"]),
        ("components", ["--prompts", str(home / "value.jsonl"), "--heads", "L0H9"]),
    ):
        done = asked(home, verb, *more, *out)
        assert isinstance(done.exception, UserError) and not (tmp_path / "run").exists()
    for verb, more in (
        ("paths", [*prompts, "--within", "both"]),
        ("circuit", [*prompts, "--heads", "last=L1H0;L0H0"]),
        ("components", ["--prompts", str(home / "value.jsonl"), "--penalties", "much"]),
    ):
        assert asked(home, verb, *more, *out).exit_code == 2 and not (tmp_path / "run").exists()
