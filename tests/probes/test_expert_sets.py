"""The planted experts are found by their effect, as the paper switches them; a model that shows nothing is refused."""

from __future__ import annotations

import pytest

import probes
from tests.probes.provenance import Calls
from workbench import organisms
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts


def planted() -> tuple[ModelPair, list[dict[str, object]]]:
    toy = organisms.build("refusal-moe")
    rows = [
        {"prompt": row["prompt"], "group": str(number)}
        for number, row in enumerate([*toy.splits["validation"], *toy.splits["ood"]])
    ]
    return load_pair(toy.base, toy.tuned), rows[:48]


def calls_of_expert_sets() -> Calls:
    both, rows = planted()
    given = {
        "behaviour": "begins:sorry", "size": 1, "tried": 3, "mode": "replace", "controls": 11, "max_new_tokens": 1,
        "batch_size": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": both, "prompts": Prompts.of(rows), **given}])


def test_a_planted_expert_is_found_by_effect() -> None:
    both, rows = planted()
    found = probes.expert_sets(both, rows, "begins:sorry", size=2, tried=8, max_new_tokens=1)
    assert found.experts[0] in organisms.build("refusal-moe").truth.experts
    last = found.table.iloc[-1]
    assert last["left"] < 0.05 and last["score"] > last["control"] + 0.05 and len(found.alone) == 8
    assert found.figure().data and "rank correlation" in found.summary() and found.recipe.interventions
    with pytest.raises(UserError, match="give prompts that bring it"):
        probes.expert_sets(both.base, rows, "begins:sorry", max_new_tokens=1)
