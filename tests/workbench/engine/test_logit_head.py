"""Logits of the last column with gradients: the numbers of Hugging Face, read from a contiguous tensor."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.models.adapted import AdaptedModel


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_column_alone_is_copied_for_the_unembedding_and_says_the_same(family: str) -> None:
    hf, ids = tiny_model(family), token_batch()
    model, weight = AdaptedModel(hf, tokenizer(), name=family), hf.get_input_embeddings().weight
    plain = hf(ids, logits_to_keep=1, use_cache=False).logits
    [expected] = torch.autograd.grad(plain.logsumexp(-1).sum(), weight)
    head, reads = hf.get_output_embeddings(), []
    seen = head.register_forward_hook(lambda _head, read, _logits: reads.append(read[0].is_contiguous()))
    logits = model.forward(ids, logits="last", grad=True)
    assert logits is not None and reads == [True] and not head._forward_pre_hooks
    [found] = torch.autograd.grad(logits.logsumexp(-1).sum(), weight)
    torch.testing.assert_close(logits, plain)
    torch.testing.assert_close(found, expected)
    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    frozen = model.forward(ids, logits="last")
    assert frozen is not None and reads == [True, True] and torch.equal(frozen, logits), "the same bits when frozen"
    seen.remove()
