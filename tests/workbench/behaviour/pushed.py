"""Recipes for tests that make a chosen token win, without importing interventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tests.tiny import tokenizer
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import select
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel

WORDS = "the quick brown fox jumps over lazy dog".split()
ROWS: list[dict[str, Any]] = [
    {"prompt": " ".join(WORDS[i % 5 : i % 5 + 1 + i % 4]), "answer": " fox", "distractor": " dog"} for i in range(12)
]


def token(word: str) -> int:
    """The id of a word inside a text."""
    return int(tokenizer()(f"a {word}", add_special_tokens=False)["input_ids"][1])


class Push:
    """Adds ``size`` times a token's unembedding direction at the end of the last layer, so that this token wins.

    ``size`` may be one number per row; ``recipe * factor`` scales it.
    """

    def __init__(self, token: int, size: float | Sequence[float] = 300.0, positions: str = "all") -> None:
        self.token, self.size, self.positions = token, size, positions

    def __mul__(self, factor: float) -> Push:
        assert not isinstance(self.size, Sequence)
        return Push(self.token, self.size * factor, self.positions)

    def rows(self, factors: Sequence[float]) -> Push:
        assert not isinstance(self.size, Sequence)
        return Push(self.token, [self.size * factor for factor in factors], self.positions)

    @contextmanager
    def applied(self, model: AdaptedModel) -> Iterator[None]:
        direction = torch.nn.functional.normalize(model.unembedding()[self.token].detach(), dim=0)

        def push(value: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
            size = torch.tensor(self.size, dtype=value.dtype)
            step = (size[ctx.rows] if size.ndim else size).reshape(-1, 1, 1) * direction
            chosen = select(self.positions, ctx)
            if chosen.nothing:
                return value
            return value + (step if chosen.mask is None else step * chosen.mask[..., None])

        with model.hooked([SiteHook(Site("resid_post", model.n_layers - 1), push, edit=True)]):
            yield
