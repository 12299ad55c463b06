"""Placeholders for trained prompt rows: token ids that stand in a prompt where a tuned model reads rows of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.typing import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class PromptRows:
    """``count`` placeholders, in front of a prompt (behind the token that begins a text) or behind it.

    To a base they are the word of that id, to a tuned model its trained rows, so that positions line up.
    """

    token: int
    count: int
    behind: bool = False

    def placed(self, ids: Sequence[int], bos: int | None) -> list[int]:
        """Token ids of a prompt with the placeholders in it."""
        if self.behind:
            return [*ids, *[self.token] * self.count]
        first = 1 if ids and ids[0] == bos else 0
        return [*ids[:first], *[self.token] * self.count, *ids[first:]]


def rows_of(tokenizer: Any) -> PromptRows | None:
    """The prompt rows that prompts get in front of or behind them when this tokenizer encodes them."""
    return getattr(tokenizer, "prompt_rows", None)


def row_numbers(here: Bool[Tensor, "batch pos"], count: int) -> Int[Tensor, "batch pos"]:
    """Which prompt row stands at each placeholder; meaningless elsewhere."""
    return (here.long().cumsum(-1) - 1).clamp(0, count - 1)


def rows_read(
    ids: Int[Tensor, "batch pos"], placeholder: int, vectors: Float[Tensor, "row d_model"], embedded: Tensor
) -> Tensor | None:
    """``embedded`` with the vectors in the place of placeholders, in their order; None where there are none."""
    here = ids == placeholder
    if not bool(here.any()):
        return None
    return torch.where(here[..., None], vectors.to(embedded)[row_numbers(here, len(vectors))], embedded)
