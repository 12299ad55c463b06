"""Steering keeps nothing per generated token beyond what generate itself keeps."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from interventions.concept_ablation import ConceptAblation
from interventions.expert_switch import ExpertSwitch
from interventions.heads import HeadOffset
from interventions.offset import Offset
from interventions.recipe import Recipe
from interventions.sweep import swept
from tests.tiny import tiny_model, token_batch


class Alive(StoppingCriteria):  # type: ignore[misc]
    """Counts the tensors that are alive after steps 4 and 14; never stops."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.step += 1
        if self.step in (4, 14):
            gc.collect()
            self.counts.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
        return torch.zeros(len(input_ids), dtype=torch.bool)


def growth(hf: Any, recipe: Recipe | None) -> int:
    """How many more tensors live after step 14 than after step 4."""
    alive = Alive()
    ids = token_batch(rows=2, length=6)
    options = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    with (recipe or Recipe([])).applied(hf):
        hf.generate(
            ids, attention_mask=torch.ones_like(ids), stopping_criteria=StoppingCriteriaList([alive]), **options
        )
    early, late = alive.counts
    return late - early


@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_no_tensor_stays_per_generated_token(family: str) -> None:
    hf = tiny_model(family)
    everything = [Offset(layer, torch.ones(64), positions="last+generated") for layer in range(3)]
    everything += [
        ConceptAblation(1, torch.ones(64)),
        HeadOffset({"L1H1": torch.ones(32 if family == "qwen3moe" else 16)}),
    ]
    recipe = swept(Recipe(everything), [0.5, 1.0])
    if family == "qwen3moe":
        recipe = recipe + ExpertSwitch(off=["L1E3"], mode="replace")
    assert growth(hf, recipe) <= growth(hf, None)
