"""The script of fifteen lines on the shipped adapters; the demo's story of one is told in ``test_help_examples``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interventions import Recipe
from tunescope.demo.real_model import by_turns
from workbench import organisms

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smol-refusal", "smol-layers"])
def test_fifteen_lines_find_the_change_and_turn_it_off(name: str, smollm2: Path, tmp_path: Path) -> None:
    organism = organisms.build(name)
    rows = by_turns(organism.splits["held_out"], 32)
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    recipe = tmp_path / "off.safetensors"
    script = ROOT / "examples" / "whole_way.py"
    assert len(script.read_text().splitlines()) <= 15
    done = subprocess.run(
        [sys.executable, str(script), str(organism.base), str(organism.tuned), str(questions), str(recipe)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refusals 0% -> " in done.stdout and "exact in 27 leading" in done.stdout
    assert "tuned + recipe" in done.stdout and len(Recipe.load(recipe)) >= 1
