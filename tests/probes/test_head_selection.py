"""Head selection: the only head that can reach the answer is found (METHODS 2, known answer iii), random heads lose."""

from __future__ import annotations

import pytest
import torch

from probes.selection import HeadSelection, head_selection
from tests.tiny import tiny_model, tokenizer
from workbench import organisms
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_one
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
    found = head_selection(model, prompts(), heads=1, epochs=6, learning_rate=1e-1, penalty=0.0, end=False)
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


def others_write_what_no_prompt_changes() -> AdaptedModel:
    """All heads write, but the values of all but one are biases, the same for every prompt. The unembedding tells
    " fox" from " dog" along one direction, so a constant written to it helps one answer and hurts the other."""
    hf = tiny_model("qwen2", num_key_value_heads=4)
    width, words = 16, tokenizer()
    fox, dog = (words(word, add_special_tokens=False)["input_ids"][0] for word in (" fox", " dog"))
    with torch.no_grad():
        for place, layer in enumerate(hf.model.layers):
            layer.mlp.down_proj.weight.zero_()
            for head in range(4):
                own = slice(head * width, (head + 1) * width)
                if (place, head) != (LAYER, HEAD):
                    layer.self_attn.v_proj.weight[own] = 0
                    layer.self_attn.v_proj.bias[own] = torch.randn(width)
        batch = words([row.prompt for row in told_apart()], return_tensors="pt")
        common = torch.nn.functional.normalize(hf.model(batch["input_ids"])[0][:, -1].mean(0), dim=0)
        apart = torch.randn(64)
        apart -= (apart @ common) * common  # as it is, the model leans to neither answer
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[fox], hf.lm_head.weight[dog] = apart, -apart
    return AdaptedModel(hf, words, role="model", name="one-head-reads")


def told_apart(n: int = 64) -> Prompts:
    """The answer follows the second word."""
    pairs = [("quick", " fox"), ("lazy", " dog")]
    return Prompts.of(
        [
            {"prompt": f"the {pairs[i % 2][0]} {'xyzqabcd'[i % 8]}", "answer": pairs[i % 2][1], "group": f"{i}"}
            for i in range(n)
        ]
    )


def test_heads_that_write_the_same_for_every_prompt_lose_to_the_one_that_reads_it() -> None:
    model = others_write_what_no_prompt_changes()
    found = head_selection(
        model, told_apart(), heads=1, epochs=8, learning_rate=5e-2, penalty=3e-2, resamples=0, end=False
    )
    best, second = found.frame().iloc[0], found.frame().iloc[1]
    assert found.chosen == [f"L{LAYER}H{HEAD}"] and best.score > 3 * second.score


@pytest.mark.slow
def test_heads_chosen_for_another_task_stand_beside_the_chosen_ones(tmp_path: object) -> None:
    organism = organisms.build("reachable-heads")
    model = load_one(organism.base, device="cpu")
    rows = organism.splits["train"][:160]
    third = [{**row, "answer": f" {row['group'].split()[2]}"} for row in rows]  # the third thing, in English
    found = head_selection(model, rows, heads=3, epochs=5, resamples=0, learning_rate=1e-2, end=False, other=third)
    assert set(found.chosen) == set(organism.truth.heads)
    assert found.other_chosen is not None and len(found.other_chosen) == 3
    assert set(found.other_chosen) != set(organism.truth.heads)
    last = found.together.iloc[-1]
    assert last["count"] == 3 and last.low > last.other_high and last.low > last.control_high
    figure = found.together_figure()
    assert any("other task" in (trace.name or "") for trace in figure.data)
    back = HeadSelection.load(found.save(f"{tmp_path}/heads"))
    assert back.other_chosen == found.other_chosen and back.together.equals(found.together)


def test_without_resamples_there_is_a_ranking_and_no_interval() -> None:
    found = head_selection(only_one_head_writes(), prompts(), epochs=1, resamples=0, end=False)
    assert found.frame()[["low", "high", "q"]].isna().all(axis=None) and len(found.chosen) == 1


def test_too_few_prompts_are_said() -> None:
    with pytest.raises(UserError, match="at least 8 prompts"):
        head_selection(only_one_head_writes(), prompts(2))
    with pytest.raises(UserError, match="no answer"):
        head_selection(only_one_head_writes(), Prompts.of([f"the fox {number}" for number in range(12)]))
