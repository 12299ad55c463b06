"""A run names its models by whole paths: what was made with relative ones is looked at from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.selection import pairs_of
from tunescope.cli import run

EXPERIMENT = """
name: x
pair: {base: llama-base, tuned: llama-tuned}
prompts: {foxes: {file: p.jsonl}}
steps: {lens: {do: localize lens}}
"""


@pytest.mark.parametrize("verb", ["record", "diff", "look", "localize weights", "localize lens", "run"])
def test_the_models_of_a_run_are_whole_paths(
    verb: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    given = ["llama-base", "llama-tuned", *([] if verb == "localize weights" else ["--prompts", "p.jsonl"])]
    if verb == "run":
        (home / "x.yaml").write_text(EXPERIMENT)
        given = ["x.yaml"]
    assert run([*verb.split(), *given, "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    (pair,) = pairs_of(tmp_path / "run").values()
    assert (pair.base, pair.tuned) == (str(home / "llama-base"), str(home / "llama-tuned"))
