"""The keys and values of a batch whose rows come and go between steps, aligned at their right end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workbench.typing import Bool, Int, Tensor

PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers whose columns are tokens and nothing else, so that a row can be moved."""


class CacheRows:
    """A Hugging Face cache [row, head, column, d_head] per layer, and how many of its columns each row fills.

    Columns before a row's first token are zeros, which the mask hides. No row is wider than the longest of them.
    """

    def __init__(self) -> None:
        self.cache: DynamicCache | None = None
        self.lengths: list[int] = []

    @property
    def width(self) -> int:
        """Columns that the longest row fills."""
        return max(self.lengths, default=0)

    def join(self, cache: DynamicCache, length: int) -> None:
        """A further row: the cache of a batch of one, which holds ``length`` tokens. It is used up."""
        if self.cache is None:
            self.cache, self.lengths = cache, [length]
            return
        width = max(self.width, length)
        for ours, theirs in zip(self.cache.layers, cache.layers, strict=True):
            if theirs.is_initialized:  # layers that share another's keys have none
                sides = [_padded(layer, width) for layer in (ours, theirs)]
                _fill(ours, [torch.cat(parts) for parts in zip(*sides, strict=True)], width)
        self.lengths.append(length)

    def keep(self, rows: Sequence[int]) -> None:
        """Let every other row leave, and the columns that nobody fills any more with them."""
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = None
            return
        assert self.cache is not None
        for layer in self.cache.layers:
            if layer.is_initialized:
                index = torch.tensor(rows, device=layer.keys.device)
                width = _columns(layer, self.width)
                parts = [
                    states.index_select(0, index)[:, :, states.shape[2] - width :]
                    for states in (layer.keys, layer.values)
                ]
                _fill(layer, parts, self.width)

    def grow(self) -> None:
        """A step of the model has added a token to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def mask(self, device: torch.device) -> Bool[Tensor, "row column"] | None:
        """Real tokens, the one that is about to be added among them; None where no row is padded."""
        if len(set(self.lengths)) == 1:
            return None
        columns = torch.arange(self.width + 1, device=device)
        first = self.width - torch.tensor(self.lengths, device=device)
        return columns >= first[:, None]

    def positions(self, device: torch.device) -> Int[Tensor, "row 1"]:
        """The position of the token that is about to be added to each row."""
        return torch.tensor(self.lengths, device=device)[:, None]


def _columns(layer: Any, width: int) -> int:
    """How many of ``width`` columns a layer keeps."""
    return min(width, layer.sliding_window - 1) if isinstance(layer, DynamicSlidingWindowLayer) else width


def _padded(layer: Any, width: int) -> list[Tensor]:
    """Keys and values with zeros before them."""
    more = _columns(layer, width) - layer.keys.shape[2]
    return [pad(states, (0, 0, more, 0)) for states in (layer.keys, layer.values)]


def _fill(layer: Any, parts: Sequence[Tensor], width: int) -> None:
    layer.keys, layer.values = parts
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = width
