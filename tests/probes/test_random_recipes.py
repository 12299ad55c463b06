"""Random stand-ins for a recipe differ from it in what was chosen alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import interventions as iv
import workbench as wb
from probes.random_recipes import expert_use, stand_ins
from tests.interventions.registered_cases import registered_cases
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts

ROWS = Prompts.of(["the quick brown", "fox jumps over", "lazy dog", "a quick dog"])
RECIPES = [
    iv.Recipe([iv.Offset(1, torch.linspace(-1, 1, 64) / 3, strength=2.0, positions="last")]),
    iv.Recipe([iv.SubspaceKnob(1, torch.eye(64)[:2] / 7, torch.tensor([0.1, 0.2]), positions="last+generated")]),
    iv.Recipe([iv.ConceptAblation(1, torch.eye(64)[:1], mean=torch.ones(64) / 3)]),
    iv.Recipe([iv.Clamp(0, torch.ones(64) / 9, low=-1.5)]),
    iv.Recipe([iv.HeadScale({"L0H1": 0.0, "L1H0": torch.ones(16) / 3}), iv.HeadOffset({"L0H1": torch.ones(16) / 3})]),
    iv.Recipe([iv.ExpertSwitch(off=["L0E1", "L2E3"], on=["L1E0"], mode="drop", weight="max")]),
]


@cache
def pair_of(family: str) -> ModelPair:
    base = tiny_model(family)
    return wb.load_pair(base, tuned_copy(base), tokenizer=tokenizer())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.interventions[0].kind)
def test_stand_ins_are_matched_in_count_layer_and_norm(recipe: iv.Recipe) -> None:
    model = pair_of("mixtral" if isinstance(recipe.interventions[0], iv.ExpertSwitch) else "llama").tuned
    drawn = stand_ins(recipe, model, ROWS)
    assert len(drawn) == 10 and len({draw.content for draw in drawn}) > 1
    assert drawn == stand_ins(recipe, model, ROWS)
    for one in drawn:
        assert one != recipe
        for before, now in zip(recipe, one, strict=True):
            old, new = before.to_tensors(), now.to_tensors()
            assert [tensor.shape for tensor in old[1].values()] == [tensor.shape for tensor in new[1].values()]
            for mine, theirs in zip(old[1].values(), new[1].values(), strict=True):
                if not isinstance(before, iv.SubspaceKnob):
                    torch.testing.assert_close(theirs.norm(), mine.norm())
            assert getattr(now, "strength", None) == getattr(before, "strength", None)
            for name in ("off", "on", "scales", "vectors"):
                labels = [label[:2] for label in getattr(before, name, ())]
                assert sorted(label[:2] for label in getattr(now, name, ())) == sorted(labels)
    assert stand_ins(recipe, model, ROWS, 0) == []


def test_what_has_no_stand_in_has_no_control() -> None:
    pair = pair_of("llama")
    assert stand_ins(iv.Recipe([iv.LayerScale.from_pair(pair, 1.0, 0.0)]), pair.tuned, ROWS) == []
    assert stand_ins(RECIPES[0] + iv.AttentionScale(2.0), pair.tuned, ROWS) == []


def test_use_of_experts_is_what_the_routers_select() -> None:
    moe = pair_of("mixtral")
    use = expert_use(moe.tuned, ROWS)
    per_layer = [sum(share for (layer, _), share in use.items() if layer == number) for number in range(3)]
    assert per_layer == pytest.approx([moe.tuned.top_k] * 3)


CASES = registered_cases()


@pytest.mark.parametrize("name", CASES)
def test_every_intervention_has_its_random_control_or_says_why_it_has_none(name: str) -> None:
    case = CASES[name]
    model = case.model_of("mixtral" if "mixtral" in case.families else case.families[0])
    intervention = case.make(model, [0, 1])
    drawn = stand_ins(iv.Recipe([intervention]), model, ROWS)
    if case.uncontrolled:
        assert not drawn and case.uncontrolled.endswith("."), case.uncontrolled
        return
    assert len(drawn) == 10, f"give {intervention.kind} stand_ins(), or its case the reason in uncontrolled"
    assert all(draw.interventions[0].kind == intervention.kind for draw in drawn)
    assert iv.Recipe([intervention]).content not in {draw.content for draw in drawn}
