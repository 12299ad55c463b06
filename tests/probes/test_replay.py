"""Replay: the shortcuts give what a whole forward pass gives, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from probes.replay import LastToken, counted, frozen, layers_skipped, read_out
from tests.mixed_families import mixed_model
from tests.tiny import FAMILIES, tiny_model, token_batch, tokenizer
from tests.workbench.engine.test_foreign import foreign_model
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel


def model_of(family: str) -> AdaptedModel:
    return AdaptedModel(tiny_model(family), tokenizer(), role="model")


def rows() -> list[list[int]]:
    """Unequal lengths, some longer than the sliding window of 16."""
    return [row[:length].tolist() for row, length in zip(token_batch(4, 24), (24, 9, 20, 2), strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_at_the_last_layer_is_the_model_itself(family: str) -> None:
    model, ids = model_of(family), token_batch(2, 20)
    kept: list[torch.Tensor] = []
    last = Site("resid_post", model.n_layers - 1)
    with model.hooked([SiteHook(last, lambda value, ctx: kept.append(value[:, -1].clone()))]):
        logits = model.forward(ids)
    assert torch.allclose(read_out(model, kept[0]), logits[:, -1], atol=1e-5)
    assert torch.equal(model.forward(ids), logits) and model.n_hooks == 0


WORDS = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "n_embd": 64, "n_layer": 3, "n_head": 4}
STRANGE = {
    "layers that return lists": lambda: tf.AutoModelForCausalLM.from_config(tf.OpenAIGPTConfig(**WORDS)),
    "one key for all heads": lambda: tf.AutoModelForCausalLM.from_config(tf.GPTBigCodeConfig(**WORDS)),
    "layers that return two values": lambda: mixed_model("bamba"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_the_lens_at_the_last_layer_of_a_strange_model_is_the_model_itself(kind: str) -> None:
    torch.manual_seed(0)
    model, ids = AdaptedModel(STRANGE[kind]().eval(), tokenizer(), role="model"), token_batch(2, 20)
    kept: list[torch.Tensor] = []
    last = Site("resid_post", model.n_layers - 1)
    with model.hooked([SiteHook(last, lambda value, ctx: kept.append(value[:, -1].clone()))]):
        logits = model.forward(ids)
    assert len(kept) == 1 and torch.allclose(read_out(model, kept[0]), logits[:, -1], atol=1e-5)
    direction = torch.randn(model.d_model)
    with model.hooked([SiteHook(Site("resid_post", 1), lambda value, ctx: value + direction, edit=True)]):
        moved = model.forward(ids)
    assert not torch.allclose(moved, logits, atol=1e-3) and torch.equal(model.forward(ids), logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_every_forward_pass_counts_once(family: str) -> None:
    model = AdaptedModel(foreign_model(family) if family == "opt" else tiny_model(family), tokenizer(), role="model")
    with counted(model, model) as passes:
        model.forward(token_batch(2, 6))
        model.forward(token_batch(2, 6), logits=None)
        model.hf.generate(token_batch(2, 6), max_new_tokens=3, min_new_tokens=3)
    assert passes.forward == 5
    model.forward(token_batch(2, 6))
    assert passes.forward == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_the_last_token_equals_a_whole_forward_pass(family: str) -> None:
    model = model_of(family)
    last = LastToken(model, rows(), batch_size=3)
    ends = last.ends[1] + torch.randn(4, model.d_model)
    replayed = last.all_after(1, ends)
    for row, ids in enumerate(rows()):

        def put(value: torch.Tensor, ctx: object, row: int = row) -> torch.Tensor:
            changed = value.clone()
            changed[:, -1] = ends[row]
            return changed

        with model.hooked([SiteHook(Site("resid_post", 1), put, edit=True)]):
            whole = model.forward(torch.tensor([ids]), logits="last")
        assert torch.allclose(replayed[row], whole[0, -1], atol=2e-4), family
    assert torch.allclose(last.all_after(1, last.ends[1]), last.logits, atol=1e-5)


def test_gradients_flow_to_the_edit_alone_and_runs_do_not_add_up() -> None:
    model = model_of("llama")
    last = LastToken(model, rows(), batch_size=4)
    end = last.ends[0][last.rows[0]].clone().requires_grad_()
    with frozen(model.hf):
        first = last.after(0, 0, end, grad=True)
        first.sum().backward()
        second = last.after(0, 0, end, grad=True)
    assert end.grad is not None and end.grad.abs().sum() > 0
    assert torch.equal(first, second)
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())


def test_skipped_layers_come_back_after_an_exception() -> None:
    model, ids = model_of("gpt2"), token_batch()
    before = model.forward(ids)
    with pytest.raises(ValueError, match="stop"), layers_skipped(model, 1):
        raise ValueError("stop")
    assert torch.equal(model.forward(ids), before)
