"""Logits of a few tokens: the model's own, row by row, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from probes.patches.vocabulary import can_narrow, only_tokens
from tests.tiny import FAMILIES, tiny_model, token_batch, tokenizer
from workbench.models.adapted import AdaptedModel


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_models_own_for_every_copy_of_a_prompt(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer(), role="model")
    ids = token_batch(3, 7).repeat_interleave(2, 0)
    tokens = torch.tensor([[5, 9], [9, 5], [70, 6]])
    whole = model.forward(ids, logits="last")
    assert can_narrow(model) and whole is not None
    with only_tokens(model, tokens):
        few = model.forward(ids, logits="last")
    assert few is not None and few.shape == (6, 1, 2)
    assert torch.allclose(few[:, 0], whole[:, 0].gather(1, tokens.repeat_interleave(2, 0)), atol=1e-5)
    assert torch.allclose(few[0::2], few[1::2], atol=1e-5)
    assert torch.equal(model.forward(ids, logits="last"), whole)


def test_a_bias_is_added_and_an_exception_leaves_nothing_behind() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    head = model.hf.lm_head
    head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    ids, tokens = token_batch(2, 5), torch.tensor([[3], [8]])
    whole = model.forward(ids, logits="last")
    with pytest.raises(ValueError, match="stop"), only_tokens(model, tokens):
        few = model.forward(ids, logits="last")
        raise ValueError("stop")
    assert torch.allclose(few[:, 0, 0], whole[:, 0].gather(1, tokens)[:, 0], atol=1e-5)
    assert "forward" not in head.__dict__ and torch.equal(model.forward(ids, logits="last"), whole)


def test_an_unembedding_that_somebody_listens_to_is_left_whole() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    handle = model.hf.lm_head.register_forward_hook(lambda _module, _args, _out: None)
    assert not can_narrow(model)
    handle.remove()
    model.hf.lm_head = torch.nn.Sequential(model.hf.lm_head)
    assert not can_narrow(model)
