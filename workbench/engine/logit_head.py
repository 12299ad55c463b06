"""The vocabulary projection of a few columns, with gradients, at the cost of those columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def contiguous_head(hf: Any, wanted: bool) -> Iterator[None]:
    """Let the unembedding read its columns as a contiguous tensor inside, where ``wanted``.

    Of a slice that needs a gradient, torch.matmul copies the vocabulary matrix once per row: 2.4 s in place of 0.02 s
    for sixteen prompts of SmolLM2-135M, for the same numbers.
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
