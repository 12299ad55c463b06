"""The real model's story in the demo, and the script of fifteen lines, on the shipped adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interventions import Recipe
from tunescope.demo.real_model import by_turns, tell_real
from workbench import organisms, runs
from workbench.progress import Silent

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_tells_what_changed_and_where(smollm2: Path, tmp_path: Path) -> None:
    """Few questions: enough for the first steps, and the last says that they are too few."""
    said: list[str] = []
    story = tell_real(tmp_path, 0, Silent(), said.append, questions=8)
    assert story is not None and story.look.behaviour == "refusal"
    assert any("refusals 0% -> " in line for line in said) and any("heads: of the change" in line for line in said)
    assert {row["label"] for row in story.answers(2)} == {"animal", "thing"}
    assert {"answers", "layers", "heads"} <= set(story.look.results)
    assert runs.verify(story.run.path).ok and story.run.path.parent == tmp_path
    top = story.look.results["layers"].frame().set_index("layer")["score"]
    assert top[29] == pytest.approx(1.0, abs=1e-3) and top[0] < 0.1, "carried late, not early"


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
