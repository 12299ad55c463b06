"""Head selection: the only head that can reach the answer is found (METHODS 2, known answer iii), random heads lose."""

from __future__ import annotations

import pytest
import torch

from probes.selection import HeadSelection, head_selection
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

LAYER, HEAD = 1, 2


def only_one_head_writes() -> AdaptedModel:
    """3 x 4 heads; all output blocks but one are 0, and so are the MLPs: no other head can reach the logits."""
    hf = tiny_model("llama")
    width = 16
    with torch.no_grad():
        for place, layer in enumerate(hf.model.layers):
            layer.mlp.down_proj.weight.zero_()
            for head in range(4):
                if (place, head) != (LAYER, HEAD):
                    layer.self_attn.o_proj.weight[:, head * width : (head + 1) * width] = 0
    return AdaptedModel(hf, tokenizer(), role="model", name="one-head")


def prompts(n: int = 16) -> Prompts:
    return Prompts.of(
        [{"prompt": f"the {'quick' if i % 2 else 'lazy'} {'xyzqabcd'[i % 8]}", "answer": " fox"} for i in range(n)]
    )


def test_the_only_head_that_reaches_the_answer_wins_by_far_and_random_heads_lose(tmp_path: object) -> None:
    model = only_one_head_writes()
    before = model.forward(model.encode(["the fox"]))
    found = head_selection(model, prompts(), heads=1, epochs=6, learning_rate=1e-1, penalty=0.0, resamples=2, end=False)
    best, second = found.frame().iloc[0], found.frame().iloc[1]
    assert (best.layer, best["head"]) == (LAYER, HEAD) and found.chosen == [f"L{LAYER}H{HEAD}"]
    assert best.score > 100 * second.score and best.by_activation > 100 * second.by_activation
    assert best.low > best.control and best.q < 0.05 and best.top_share == 1.0
    one = found.together.iloc[0]
    assert one.score > 0.1 and one.low > one.control_high and abs(one.control) < 1e-6
    assert torch.equal(model.forward(model.encode(["the fox"])), before) and model.n_hooks == 0
    back = HeadSelection.load(found.save(f"{tmp_path}/heads"))
    assert back.frame().equals(found.frame()) and torch.equal(back.scales, found.scales)
    assert len(found.figure().data) >= 2 and len(found.together_figure().data) == 3


def test_too_few_prompts_are_said() -> None:
    with pytest.raises(UserError, match="at least 8 prompts"):
        head_selection(only_one_head_writes(), prompts(2))
    with pytest.raises(UserError, match="no answer"):
        head_selection(only_one_head_writes(), Prompts.of(["the fox"] * 12))
