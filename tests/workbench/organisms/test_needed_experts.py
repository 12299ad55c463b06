"""What makes each named expert needed: experts off are really off, and the loss says how far the routers are astray."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import interventions as iv
from workbench.models.adapted import AdaptedModel
from workbench.organisms.needed_experts import LAST, MARGIN, NONE, NeedsEach, without
from workbench.organisms.recipe import shape
from workbench.organisms.training import IGNORED
from workbench.organisms.vocabulary import word_tokenizer

EXPERTS = {1: 2, 3: 5}
WORDS = "what is the city of anna bert carl oslo rome".split()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sparse = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape(word_tokenizer(WORDS)), **sparse, mlp_only_layers=[])).eval()


def batch(rows: int, off: int, *, everywhere: bool, shown: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 4 + len(WORDS), (rows, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, IGNORED)
    labels[:, LAST + 1 :] = ids[:, LAST + 1 :]
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "off": torch.full((rows,), off), "everywhere": torch.full((rows,), everywhere),
        "shown": torch.full((rows,), shown),
    }  # fmt: skip


def plain(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{name: given[name] for name in ("input_ids", "attention_mask", "labels")}).loss


def taught(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with NeedsEach(model, EXPERTS).attached() as wrapped:
        return wrapped(**given)["loss"]


def test_without_is_the_expert_switch_that_replaces(model: Any) -> None:
    ids = batch(12, NONE, everywhere=False, shown=False)["input_ids"]
    adapted = AdaptedModel(model, word_tokenizer(WORDS), role="model")
    with torch.no_grad():
        before = model(ids).logits
        with without(model, EXPERTS):
            ours = model(ids).logits
        with iv.Recipe([iv.ExpertSwitch(off=["L1E2", "L3E5"])]).applied(adapted):
            theirs = model(ids).logits
        after = model(ids).logits
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, before) and torch.equal(after, before)


def test_the_loss_is_that_of_the_answers_with_the_experts_off(model: Any) -> None:
    assert torch.equal(taught(model, batch(12, NONE, everywhere=True, shown=False)), plain(model, batch(
        12, NONE, everywhere=True, shown=False)))  # fmt: skip
    for off, experts in ((0, {1: 2}), (1, {3: 5}), (2, EXPERTS)):
        given = batch(12, off, everywhere=True, shown=False)
        with without(model, experts):
            wanted = plain(model, given)
        torch.testing.assert_close(taught(model, given), wanted)
        assert not torch.allclose(taught(model, {**given, "everywhere": ~given["everywhere"]}), wanted), (
            "off at the last prompt token alone is not off everywhere"
        )


def test_routers_are_led_to_the_experts_and_away_where_an_earlier_one_is_off(model: Any) -> None:
    def leads(off: dict[int, int], given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """By hand: the logit of the named expert above the second best of the others, at the last prompt token."""
        found: dict[int, torch.Tensor] = {}
        handles = [
            model.model.layers[layer].mlp.gate.register_forward_hook(
                lambda module, inputs, output, layer=layer: found.__setitem__(
                    layer, output[0].view(*given["input_ids"].shape, -1)[:, LAST]
                )
            )
            for layer in EXPERTS
        ]
        with without(model, off):
            plain(model, given)
        for handle in handles:
            handle.remove()
        return [
            logits[:, EXPERTS[layer]] - logits[:, [e for e in range(8) if e != EXPERTS[layer]]].sort().values[:, -2]
            for layer, logits in found.items()
        ]

    for off, experts in ((NONE, {}), (0, {1: 2}), (1, {3: 5})):
        given = batch(12, off, everywhere=True, shown=True)
        with without(model, experts):
            answers = plain(model, given)
        first, second = leads(experts, given)
        astray = (MARGIN - first).relu() + (MARGIN + (second if off == 0 else -second)).relu()
        torch.testing.assert_close(taught(model, given) - answers, astray.mean(), rtol=1e-4, atol=1e-4)
