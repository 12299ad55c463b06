"""Which of the attended tokens are chosen: positions over all columns so far, the cached ones included."""

from __future__ import annotations

from dataclasses import replace

import torch

from interventions.scope import tell_unknown_prompt
from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Where, needs_prompt, select, where
from workbench.errors import NotSupported
from workbench.typing import Bool, Tensor


class KeyScope:
    """Positions of keys. Rules about token ids remember the ids that passed, since the cache does not hold them."""

    def __init__(self, keys: PositionSpec | Where) -> None:
        self.where = where(keys)
        positions = (self.where.at, self.where.exclude)
        self._needs_ids = self.where.tokens is not None or any(callable(position) for position in positions)
        self._seen: Tensor | None = None

    def __call__(self, ctx: ForwardContext, n_keys: int) -> Bool[Tensor, "batch key"]:
        """True at chosen keys. A layer with a sliding window shows the last ``n_keys`` columns, a static cache more."""
        mask: Tensor | None = ctx.scratch.get(("keys", id(self)))
        if mask is None:
            mask = ctx.scratch["keys", id(self)] = self._whole(ctx)
        missing = n_keys - mask.shape[1]
        if missing > 0:
            return torch.nn.functional.pad(mask, (0, missing))
        return mask[:, -missing:]

    def _whole(self, ctx: ForwardContext) -> Bool[Tensor, "batch column"]:
        """True at chosen columns, of all up to now."""
        if ctx.loose is not None and needs_prompt(self.where):
            tell_unknown_prompt(self.where, ctx)
        ids = self._ids(ctx) if self._needs_ids else None
        whole = replace(ctx, start=0, length=ctx.start + ctx.length, input_ids=ids, scratch={})
        selection = select(self.where, whole)
        return whole.real if selection.mask is None and selection.everything else _mask(selection.mask, whole)

    def _ids(self, ctx: ForwardContext) -> Tensor:
        if ctx.input_ids is None:
            raise NotSupported("Keys by token id need token ids, but the model was given embeddings.")
        if ctx.generation is not None and ctx.generation.beams > 1 and ctx.start > 0 and self.where.at != "prompt":
            raise NotSupported(
                "Beam search exchanges rows between steps, so generated tokens cannot be told apart as keys: limit "
                'the keys to Where("prompt", tokens=...), or generate without beams.'
            )
        if ctx.start == 0:
            self._seen = ctx.input_ids
        elif self._seen is None or self._seen.shape[1] < ctx.start or len(self._seen) != ctx.batch:
            raise NotSupported(
                "Keys by token id must have seen the whole text: enter the recipe before the prompt runs."
            )
        else:
            self._seen = torch.cat([self._seen[:, : ctx.start], ctx.input_ids], dim=1)
        return self._seen


def _mask(mask: Tensor | None, whole: ForwardContext) -> Tensor:
    return torch.zeros_like(whole.real) if mask is None else mask
