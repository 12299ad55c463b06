"""The vocabulary projection of a few columns at the cost of those columns, and with the same bits however it is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def contiguous_head(hf: Any, wanted: bool) -> Iterator[None]:
    """Let the unembedding read its columns as a contiguous tensor inside, where ``wanted``.

    Of a slice, where the vocabulary matrix needs no gradient (a frozen model, the base of an adapter), torch.matmul
    copies that matrix once per row and sums in another order: 2.4 s in place of 0.02 s for sixteen prompts of
    SmolLM2-135M. A contiguous tensor gives the bits of a model as it was loaded, with gradients or without.
    """
    head = hf.get_output_embeddings() if wanted else None
    if not isinstance(head, nn.Module):
        yield
        return
    handle = head.register_forward_pre_hook(lambda _head, read: tuple(part.contiguous() for part in read))
    try:
        yield
    finally:
        handle.remove()
