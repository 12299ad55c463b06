"""Recipes in one line: what a name of the book stands for is among what a step's numbers hang on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import interventions as iv
from tunescope.experiments import Experiment, run_experiment
from workbench.errors import UserError

TEXT = """
name: lines
pair: {base: llama-base, tuned: llama-tuned, device: cpu}
prompts: {file: p.jsonl, limit: 4}
recipes:
  line: 0.5*push
  among: [{kind: Recipe, line: push}]
steps:
  effect: {do: diff, recipes: [line, among], metrics: [kl]}
  plain: {do: diff, metrics: [kl]}
"""


def recipe(seed: int) -> iv.Recipe:
    return iv.Recipe([iv.Offset(1, torch.randn(64, generator=torch.Generator().manual_seed(seed)))])


def test_a_book_that_changes_makes_the_step_run_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("llama-base", "llama-tuned", "p.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    experiment, book = Experiment.parse(TEXT), iv.RecipeBook(tmp_path / "recipes")
    book.keep("push", recipe(1))
    book.keep("other", recipe(3))
    first = run_experiment(experiment, folder=tmp_path)
    book.drop("other")  # no line names it
    assert run_experiment(experiment, folder=tmp_path).run.path == first.run.path
    book.drop("push")
    book.keep("push", recipe(2))
    second = run_experiment(experiment, folder=tmp_path)
    assert second.run.path != first.run.path
    changed = first.metrics["estimate"].ne(second.metrics["estimate"])
    assert {"line", "among"} <= set(first.metrics[changed]["of"]), "what the line's recipe reaches"
    assert not {"base", "tuned"} & set(first.metrics[changed]["of"]), "and nothing else"
    steps = [{path.name for path in run.path.glob("steps/*")} for run in (first.run, second.run)]
    assert {name.split("-")[0] for name in steps[0] & steps[1]} == {"plain"}, "the other step has the same key"
    with pytest.raises(UserError, match=r"another configuration: 'book\.push'"):
        run_experiment(experiment, first.run.path, folder=tmp_path)
    shutil.rmtree(tmp_path / "recipes")
    with pytest.raises(UserError, match="'push'"):
        run_experiment(experiment, folder=tmp_path)
