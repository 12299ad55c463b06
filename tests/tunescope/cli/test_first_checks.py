"""A method's command line is checked before the method, and torch with it, is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunescope.experiments.requirements import are_dense

ASK = "import sys\nfrom tunescope.cli import run\ncode = run(sys.argv[1:])\nprint(code, 'torch' in sys.modules)"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("localize heads base tuned --prompts p.jsonl", 1, "needs a column 'answer'"),
        ("localize heads base tuned --prompts=p.jsonl --limit 1", 1, "needs a column 'answer'"),
        ("localize heads base tuned", 2, "Missing option '--prompts' of localize heads"),
        ("localize heads base ./gone --prompts p.jsonl", 1, "There is no tuned model ./gone"),
        ("localize heads ./nowhere tuned --prompts p.jsonl", 1, "There is no base model ./nowhere"),
        ("localize heads base tuned --prompts q.jsonl", 1, "There is no file q.jsonl"),
        ("localize experts base tuned --prompts p.jsonl", 1, "is dense (llama)"),
        ("localize weights base ./gone", 1, "There is no tuned model ./gone"),
        ("diff base ./gone --prompts p.jsonl", 1, "There is no tuned model ./gone"),
        ("record base tuned --prompts q.jsonl", 1, "There is no file q.jsonl"),
        ("look ./gone tuned", 1, "There is no base model ./gone"),
        ("audit base ./gone", 1, "There is no tuned model ./gone"),
        ("steer base --tuned ./gone --recipe r.safetensors --prompt one", 1, "There is no tuned model ./gone"),
        ("look base tuned --prompts p.jsonl --dry-run", 0, "nothing is missing, and nothing was run"),
        ("record base tuned --prompts p.jsonl --limit 1 --dry-run", 0, "both models read 1 prompts once"),
        ("audit base tuned --dry-run", 0, "80 shipped questions"),
    ],
)
def test_what_is_wrong_is_told_without_torch(folders: Path, words: str, code: int, told: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-c", ASK, *words.split()], capture_output=True, text=True, cwd=folders, check=False
    )
    assert told in asked.stderr + asked.stdout
    assert asked.stdout.splitlines()[-1] == f"{code} False"


def test_models_are_dense_where_their_configs_name_no_experts(folders: Path) -> None:
    base = str(folders / "base")
    mixture, inner = folders / "mixture", folders / "inner"
    for folder, config in ((mixture, {"num_experts": 4}), (inner, {"text_config": {"num_local_experts": 8}})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert are_dense(base) and are_dense(base, "org/adapter")
    assert not are_dense(base, str(mixture)) and not are_dense(str(inner)) and not are_dense("org/model", "")
