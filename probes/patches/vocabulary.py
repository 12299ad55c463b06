"""Logits of a few tokens alone: a metric that reads two tokens of each prompt needs no other row of the unembedding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Int, Tensor


def can_narrow(model: AdaptedModel) -> bool:
    """Whether the unembedding is a plain linear layer that nobody listens to, so that its rows stand for themselves."""
    head = model.inner.get_output_embeddings()
    return type(head) is nn.Linear and "forward" not in head.__dict__ and not _listened(head)


@contextmanager
def only_tokens(model: AdaptedModel, tokens: Int[Tensor, "prompt token"] | None) -> Iterator[None]:
    """The model gives each row the logits of its prompt's ``tokens`` alone, in their order; of all tokens where it is
    None. Copies of a prompt stand side by side.

    Each row is computed by itself, so equal rows have equal logits in a batch of any size. The final norm, soft-caps
    and scalings stay the model's own.
    """
    if tokens is None:
        yield
        return
    head = model.inner.get_output_embeddings()
    columns = tokens.to(head.weight.device)
    weight = head.weight[columns]
    bias = 0.0 if head.bias is None else head.bias[columns][:, None, None]

    def narrow(hidden: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos token"]:
        by_prompt = hidden.unflatten(0, (len(weight), -1))
        precise = torch.promote_types(hidden.dtype, torch.float32)
        products = (by_prompt[:, :, :, None].to(precise) * weight[:, None, None].to(precise)).sum(-1)
        return (products + bias).flatten(0, 1).to(hidden.dtype)

    head.__dict__["forward"] = narrow
    try:
        yield
    finally:
        del head.__dict__["forward"]


def _listened(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
