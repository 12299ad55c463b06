"""False facts written into one matrix of a chat model: what reaches the answers is the number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interventions as iv
from interventions.training.editing import written_right
from interventions.training.examples import examples_of
from workbench import organisms
from workbench.models.pair import load_one
from workbench.prompts import Prompts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_false_facts_are_written_into_one_matrix(smollm2: Path) -> None:
    model = load_one(str(smollm2), dtype=torch.bfloat16, device="cpu")
    splits = organisms.build("smol-facts").splits
    subjects = ("capital of France", "author of Hamlet", "color of a banana")
    facts = Prompts.of([next(row for row in splits["train"] if row["group"] == subject) for subject in subjects])
    examples = examples_of(facts, model.tokenizer)
    assert not written_right(model, examples).any()
    schedule = iv.Schedule(epochs=14, batch_size=1, learning_rate=1e-3)
    edited = iv.edit_facts(model, facts, layer=20, schedule=schedule)
    assert len(edited.history) == 42 and edited.history[-1]["loss"] < 0.2
    assert written_right(model, examples).sum() >= 2, "8 steps write none or one of them"
