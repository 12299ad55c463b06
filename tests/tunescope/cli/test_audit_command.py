"""``tunescope audit --limit N --fast``: fewer questions, and no views that run a model for every random direction."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from probes.audits.auditing import Audit
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.cli.app import app


def test_fewer_questions_and_no_view_of_many_draws(tmp_path: Path) -> None:
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    pair = [str(tmp_path / name) for name in ("base", "tuned")]
    few = ["audit", *pair, "--limit", "6", "--max-new-tokens", "2", "--json"]
    cost = json.loads(CliRunner().invoke(app, [*few, "--dry-run"], catch_exceptions=False).stdout)
    assert cost["prompts"] == 6 and "beside random directions" in cost["cost"]
    done = CliRunner().invoke(app, [*few, "--fast", "--out", str(tmp_path / "a.safetensors")], catch_exceptions=False)
    assert done.exit_code == 0
    found = Audit.load(tmp_path / "a.safetensors")
    assert len(found.answers) == 6 and found.steered.empty and found.patchscope.empty
