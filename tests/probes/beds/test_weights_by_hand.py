"""Skills of a series and synergy of a merge, where every answer and every changed entry was written by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probes
from probes.series.collisions import mantel
from tests.probes.beds.lookup import NO, WIDTH, WORDS, moved, table_model, words
from tests.probes.provenance_calls import saved
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

ROWS = Prompts.of([
    {"prompt": f"go s{number}", "answer": "yes", "distractor": "no", "skill": "ab"[number // 8]} for number in range(16)
])  # fmt: skip
BASE = table_model([-1.0] * 16)  # wrong everywhere, by one nat
ON_A = moved(BASE, dict.fromkeys(range(8), 3.0))
ON_B = moved(BASE, {**dict.fromkeys(range(8, 16), 3.0), **dict.fromkeys(range(4), -3.0)})
"""Shares four entries with ``ON_A``, all of the other sign."""
ON_B_ELSEWHERE = moved(BASE, dict.fromkeys(range(8, 16), -3.0), NO)
"""Answers as the other rows of ``ON_B`` do, through entries that no other update has."""


def pair_with(tuned: Any) -> Any:
    return load_pair(BASE, tuned, tokenizer=words(), check=False)


def test_skills_overlap_conflict_and_cost_are_those_written_into_the_weights() -> None:
    found = probes.ability_collisions(
        pair_with(ON_B_ELSEWHERE), ROWS, checkpoints=saved(ON_A, ON_B), density=0.01, batch_size=16
    )
    assert found.profile().to_numpy().tolist() == [[1, 0], [0, 1], [0, 1]]
    assert found.table["score"].tolist() == [1, 0, 0, 1, 0, 1] and (found.table["base"] == 0).all()
    entries = WIDTH * len(WORDS)
    chance = 8 * 12 / entries
    conflict, apart, near = found.pairs.to_dict("records")
    assert conflict["iou"] == pytest.approx(4 / 16) and conflict["sign_conflict"] == 1
    assert conflict["iou_chance"] == pytest.approx(chance / (20 - chance))
    assert conflict["cost"] == pytest.approx(0.25) and conflict["apart"] == 1  # half of skill a is cancelled
    assert apart["iou"] == 0 and apart["cost"] == 0 and apart["apart"] == 1
    assert near["iou"] == 0 and near["cost"] == 0 and near["apart"] == 0


def test_a_gain_through_signs_is_beyond_the_control() -> None:
    found = probes.ability_collisions(pair_with(ON_A), ROWS, checkpoints=saved(ON_B), density=0.01, batch_size=16)
    gained = found.table[found.table["score"] == 1]
    assert len(gained) == 2 and (gained["control"] < 1).all() and (gained["low"] > 0).all()
    assert (found.table.loc[found.table["score"] == 0, "q"] >= 0.05).all()


def test_members_that_are_the_base_have_no_skills_and_no_collisions() -> None:
    found = probes.ability_collisions(pair_with(BASE), ROWS, checkpoints=saved(BASE), density=0.01, batch_size=16)
    assert (found.table["score"] == 0).all() and (found.table["q"] >= 0.05).all()
    assert (found.pairs[["iou", "apart", "cost"]] == 0).all(axis=None)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_overlap_that_follows_the_cost_is_told_by_exchanged_members(sign: int, expected: float) -> None:
    members = [f"m{number}" for number in range(7)]
    pairs = pd.DataFrame([
        {"first": one, "second": other, "iou": 0.01 * (1 + number) ** 2, "iou_chance": 0.0, "cost": sign * number}
        for number, (one, other) in enumerate(combinations(members, 2))
    ])  # fmt: skip
    found = mantel("overlap and cost", pairs, "cost", members, 0)
    assert found["overlap and cost"] == pytest.approx(expected) and found["p of overlap and cost"] < 0.01
    unrelated = mantel("x", pairs.assign(cost=[7 * number % 4 for number in range(21)]), "cost", members, 0)
    assert unrelated["p of x"] > 0.05


def parents() -> tuple[Any, Any]:
    """Right on 8 and on 4 of 16 statements; half of either update suffices on 6 and on all 4 of them."""
    one = moved(BASE, {**dict.fromkeys(range(6), 3.0), 10: 1.5, 11: 1.5})
    return one, moved(BASE, dict.fromkeys(range(6, 10), 3.0))


def test_synergy_is_that_of_the_halved_updates(tmp_path: Path) -> None:
    one, other = parents()
    weak = [moved(BASE, dict.fromkeys(range(8 * half, 8 * half + 8), 1.5)) for half in range(2)]
    for name, model in {"base": BASE, "one": weak[0], "two": weak[1]}.items():
        model.save_pretrained(tmp_path / name)
        words().save_pretrained(tmp_path / name)
    found = probes.merge_synergy(pair_with(one), ROWS, checkpoints=saved(other), sizes=[str(tmp_path)], batch_size=16)
    first, second = found.table.to_dict("records")
    assert (first["merged"], first["parents"], first["best_parent"], first["base"]) == (10 / 16, 6 / 16, 8 / 16, 0)
    assert first["score"] == pytest.approx(4 / 16) and first["low"] <= 4 / 16 <= first["high"]
    assert (second["merged"], second["parents"], second["score"]) == (0, 0.5, -0.5)
    assert found.larger["score"].tolist() == [pytest.approx(-0.75)]
    assert first["parameters"] == sum(parameter.numel() for parameter in BASE.parameters())


def test_a_strong_merge_of_disjoint_updates_shows_synergy_beyond_chance() -> None:
    halves = [moved(BASE, dict.fromkeys(range(8 * half, 8 * half + 8), 3.0)) for half in range(2)]
    found = probes.merge_synergy(pair_with(halves[0]), ROWS, checkpoints=saved(halves[1]), batch_size=16)
    line = found.table.iloc[0]
    assert line["score"] == 0.5 and line["q"] < 0.05 and line["control"] < 0.5


@pytest.mark.parametrize("rule", ["uniform", "stock", "ties"])
@pytest.mark.parametrize("tuned", [BASE, ON_A], ids=["base", "one update twice"])
def test_a_merge_of_equals_has_no_synergy(rule: Any, tuned: Any) -> None:
    found = probes.merge_synergy(pair_with(tuned), ROWS, checkpoints=saved(tuned), rule=rule, batch_size=16)
    line = found.table.iloc[0]
    assert line["low"] == -line["high"] < 0  # none of a few prompts is not none of all
    assert found.table["score"].tolist() == [0] and (found.table["q"] >= 0.05).all()
