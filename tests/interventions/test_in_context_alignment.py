"""IA2's training: towards the activations behind examples, and nowhere where there are none."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

import interventions as iv
import probes
from interventions.training.in_context import share_apart
from probes.effects.rewriting import with_demonstrations
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

WORDS = ("fox", "dog", "quick", "lazy", "brown", "jumps")
ROWS = Prompts.of([
    {"prompt": f"the {one} {other}", "answer": f" {WORDS[(n + m) % 6]}", "group": f"g{n}"}
    for n, one in enumerate(WORDS) for m, other in enumerate(WORDS[:3])
])  # fmt: skip
FAST = iv.Schedule(epochs=30, batch_size=6, learning_rate=3e-3, seed=1)


def adapted() -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    return peft.get_peft_model(tiny_model("llama"), config)


def loaded(model: Any) -> Any:
    return load_pair(model.get_base_model(), model, tokenizer=tokenizer(), check=False)


def test_share_apart_by_hand() -> None:
    goal = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
    assert share_apart(goal, goal) == 0
    assert share_apart(torch.zeros_like(goal), goal) == 1
    assert share_apart(torch.tensor([[[1.0, 0.0]], [[0.0, 4.0]]]), goal) == pytest.approx(0.125)


def test_without_examples_there_is_nothing_to_learn() -> None:
    pair = loaded(adapted())
    before = {name: value.clone() for name, value in pair.tuned.hf.state_dict().items()}
    found = iv.align_with_context(pair.tuned, ROWS, ROWS, schedule=iv.Schedule(epochs=1, batch_size=18))
    assert found.distance_before.estimate == 0 and found.history[0]["loss"] == 0
    assert found.distance_after.estimate < 1e-6
    assert all(torch.equal(value, before[name]) for name, value in pair.tuned.hf.state_dict().items())


def test_it_comes_nearer_and_the_map_of_activations_says_so() -> None:
    pair, train = loaded(adapted()), ROWS[:12]
    shown = with_demonstrations(train, ROWS, 3, seed=0)
    hooks = pair.tuned.n_hooks
    options: dict[str, Any] = {"shots": 3, "sites": ["attn_out"], "seed": 0}
    untrained = probes.in_context_activations(pair, train, **options).table
    found = iv.align_with_context(pair.tuned, train, shown, schedule=FAST)
    assert found.distance_after.high < 0.5 * found.distance_before.low
    assert found.history[-1]["loss"] < 0.5 * found.history[0]["loss"]
    assert pair.tuned.n_hooks == hooks
    table = probes.in_context_activations(pair, train, **options).table
    assert (untrained["score"] == 0).all() and (table["score"] > 0.5).all() and (table["low"] > 0.3).all()


def test_bad_input_is_one_sentence() -> None:
    pair = loaded(adapted())
    with pytest.raises(UserError, match="18 rows and 3 with examples"):
        iv.align_with_context(pair.tuned, ROWS, ROWS[:3])
    with pytest.raises(UserError, match="no answer"):
        iv.align_with_context(pair.tuned, ["the fox"], ["the fox"])
    pair.tuned.hf.requires_grad_(False)
    with pytest.raises(UserError, match="takes gradients"):
        iv.align_with_context(pair.tuned, ROWS, ROWS)
