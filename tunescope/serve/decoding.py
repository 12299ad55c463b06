"""Decoding of many requests in one batch per side: a row joins after its prompt was read, and leaves when it ends.

A prompt is read by itself, so its logits are bit for bit those of a single run. Steps are shared, and a row's recipe
touches that row alone; a step of one row is again bit for bit that of a single run.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from interventions.recipe import site_hooks
from tunescope.serve.cache_rows import CacheRows
from tunescope.serve.job import Job, TextOut
from tunescope.serve.next_token import NextToken
from tunescope.serve.row_hooks import for_row
from workbench.engine.hub import SiteHook
from workbench.engine.row_context import row_context
from workbench.models.adapted import AdaptedModel
from workbench.models.generation_settings import ends_of
from workbench.typing import Float, Int, Tensor


@dataclass(eq=False)
class _Row:
    job: Job
    out: TextOut
    hooks: list[SiteHook]
    choose: NextToken
    last: int = -1
    made: int = 0


class Decoding:
    """The rows of one side that are being written. Used by one thread."""

    def __init__(self, side: AdaptedModel) -> None:
        self.side = side
        self._rows: list[_Row] = []
        self._cached = CacheRows()
        self.ends = set(ends_of(side.inner))
        """Tokens that end a text."""
        self._takes_positions = "position_ids" in inspect.signature(side.inner.forward).parameters

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, job: Job, out: TextOut) -> None:
        """Read the prompt, give out the first token, and stay for the next steps unless that was the last."""
        choose = NextToken(job.temperature, job.top_p, job.seed, self.side.device)
        row = _Row(job, out, site_hooks(job.recipe, self.side), choose)
        ids = job.batch.input_ids.to(self.side.device)
        cache = DynamicCache(config=self.side.inner.config.get_text_config(decoder=True))
        out.put(job.batch.input_ids.cpu())
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        logits = self._logits([row], ids, cache, [0], positions, None)
        if not self._take(row, logits):
            self._cached.join(cache, ids.shape[1])
            self._rows.append(row)

    def step(self) -> None:
        """One more token for every row."""
        self._drop([row for row in self._rows if row.out.stopped.is_set()])
        if not self._rows:
            return
        device, cached = self.side.device, self._cached
        ids = torch.tensor([[row.last] for row in self._rows], device=device)
        mask, positions = cached.mask(device), cached.positions(device)
        logits = self._logits(self._rows, ids, cached.cache, cached.lengths, positions, mask)
        cached.grow()
        self._drop([row for place, row in enumerate(self._rows) if self._take(row, logits[place : place + 1])])

    def clear(self) -> list[TextOut]:
        """Let every row leave at once, unfinished; returns where their texts went."""
        outs = [row.out for row in self._rows]
        self._rows, self._cached = [], CacheRows()
        return outs

    def _logits(
        self,
        rows: Sequence[_Row],
        ids: Int[Tensor, "row pos"],
        cache: DynamicCache | None,
        starts: Sequence[int],
        positions: Int[Tensor, "row pos"],
        mask: Tensor | None,
    ) -> Float[Tensor, "row vocab"]:
        call: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        if mask is not None:
            call["attention_mask"] = mask.long()
        hooks = []
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if row.hooks:
                context = row_context(ids[place : place + 1], start, row.job.prompt_tokens, self.side.hub.template)
                hooks += [for_row(hook, place, context) for hook in row.hooks]
        with self.side.hooked(hooks), torch.no_grad():
            made = self.side.inner(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **call)
        logits: Tensor = made.logits[:, -1]
        return logits

    def _take(self, row: _Row, logits: Float[Tensor, "1 vocab"]) -> bool:
        """Give the row its next token; whether that ends it."""
        row.last = row.choose(logits)
        row.made += 1
        row.out.put(torch.tensor([row.last]))
        full = row.last in self.ends or row.made >= row.job.new_tokens
        if full or row.out.stopped.is_set():
            row.out.end()
            row.out.finish(row.made, row.last)
            return True
        return False

    def _drop(self, leaving: Sequence[_Row]) -> None:
        if leaving:
            staying = [place for place, row in enumerate(self._rows) if row not in leaving]
            self._rows = [self._rows[place] for place in staying]
            self._cached.keep(staying)
