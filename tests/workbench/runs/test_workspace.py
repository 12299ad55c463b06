"""Workspaces: runs about the same weights stand together, whatever they are called; the index is only a cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import probes
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import runs
from workbench.models.pair import ModelPair, load_pair
from workbench.runs.workspace import INDEX, beside, pairs_in, workspaces


@pytest.fixture(scope="module")
def pairs() -> list[ModelPair]:
    base = tiny_model("llama")
    return [load_pair(base, tuned_copy(base, size=size), tokenizer=tokenizer(), check=False) for size in (0.1, 0.2)]


def written(home: Path, name: str, pair: ModelPair) -> Path:
    with runs.create(home, name, kind="weights", config={"base": name, "tuned": "x"}) as run:
        probes.weight_delta(pair).save(run.file("result.safetensors"))
    return run.path


def test_runs_of_one_pair_stand_together(tmp_path: Path, pairs: list[ModelPair]) -> None:
    first, again = written(tmp_path, "a", pairs[0]), written(tmp_path, "b", pairs[0])
    other = written(tmp_path, "c", pairs[1])
    assert beside(first, tmp_path) == [again] and beside(other, tmp_path) == []
    found = {len(workspace.runs): workspace for workspace in workspaces(tmp_path)}
    assert [run.path for run in found[1].runs] == [other] and len(found) == 2
    key = pairs_in(first)[0]
    assert (key.base, key.tuned) == tuple(pairs[0].models[role].identity.hash for role in ("base", "tuned"))


@pytest.mark.parametrize("damage", ["", "{", '{"version": 1, "runs": {"a": 3}}', '{"version": 9, "runs": {}}'])
def test_a_lost_or_damaged_index_costs_nothing(tmp_path: Path, pairs: list[ModelPair], damage: str) -> None:
    first, again = written(tmp_path, "a", pairs[0]), written(tmp_path, "b", pairs[0])
    assert beside(first, tmp_path) == [again]
    if damage:
        (tmp_path / INDEX).write_text(damage)
    else:
        (tmp_path / INDEX).unlink()
    assert beside(first, tmp_path) == [again]
    assert set(json.loads((tmp_path / INDEX).read_text())["runs"]) == {"a", "b"}


def test_a_run_that_cannot_be_read_hides_nothing(tmp_path: Path, pairs: list[ModelPair]) -> None:
    first, again = written(tmp_path, "a", pairs[0]), written(tmp_path, "b", pairs[0])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("[" * 5)
    assert beside(first, tmp_path) == [again] and pairs_in(tmp_path / "broken") == []
