"""What the engine knows about the forward pass that is running: which rows, which positions, which tokens.

Positions are counted from each row's first real token, so they mean the same with left padding, right padding,
any batch, chunked prefill, and with the key/value cache on or off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import get_ident
from typing import Any

import torch

from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import UserError
from workbench.typing import Bool, Int, Tensor


@dataclass(eq=False)
class Generation:
    """A running call of ``generate``: how many prompt columns and rows it was given."""

    columns: int
    rows: int
    attention_mask: Tensor | None
    """[row, column] of the prompts; None when no prompt is padded."""
    beams: int = 1
    """Beams per prompt: with more than one, the rows of the cache change places from step to step."""
    most: int | None = None
    """New tokens at most; None where nobody said."""


class LooseCalls:
    """Forward passes that no ``generate`` made, for which nobody said how long the prompts are."""

    def __init__(self) -> None:
        self.warned = False
        """Whether it was said already that positions are not known."""
        self._last: Tensor | None = None

    def continues(self, ids: Tensor | None, start: int) -> bool:
        """Whether this pass goes on with a text, so that it cannot tell the prompt from what was generated."""
        if start > 0:
            return True
        last, self._last = self._last, ids
        if last is None or ids is None or ids.device.type == "meta" or last.device != ids.device:
            return False
        grown = ids.shape[0] == last.shape[0] and ids.shape[1] == last.shape[1] + 1
        return grown and torch.equal(ids[:, :-1], last)


@dataclass
class ForwardContext:
    """One forward pass over ``length`` new columns after ``start`` cached ones."""

    batch: int
    start: int
    length: int
    device: torch.device
    input_ids: Tensor | None
    """[batch, pos] token ids of the new columns; None when the model was given embeddings."""
    attention_mask: Tensor | None
    """[batch, start + length] 1 for real tokens; None when every token is real."""
    generation: Generation | None = None
    given_prompt_lengths: Tensor | None = None
    """[row] real prompt tokens, when the caller said which part is the prompt."""
    loose: LooseCalls | None = None
    """Set when this pass goes on with a text whose prompt is not known."""
    thread: int = field(default_factory=get_ident)
    """Who computes it: another thread's pass that began before the hooks came is not touched by them."""
    scratch: dict[Any, Any] = field(default_factory=dict)
    template: TemplateTokens | None = None
    """Which token ids are special or the chat template's; None of a model without tokenizer."""

    @cached_property
    def padded(self) -> bool:
        """Whether any column so far is padding."""
        if self.attention_mask is None:
            return False
        if self.generation is not None and self.generation.attention_mask is not None:
            return True  # known since generate began: asking the mask again would wait for the device at every step
        return not bool(self.attention_mask.all())

    @property
    def n_prompts(self) -> int:
        """How many prompts this batch came from; beams and repeated samples count once."""
        return self.batch if self.generation is None else self.generation.rows

    @property
    def decoding(self) -> bool:
        """Whether all new columns hold generated tokens."""
        generation = self.generation
        return generation is not None and self.given_prompt_lengths is None and self.start >= generation.columns

    @cached_property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True where the new column holds a real token."""
        if not self.padded:
            return torch.ones(self.batch, self.length, dtype=torch.bool, device=self.device)
        return self._mask[:, self.start : self.start + self.length]

    @cached_property
    def index(self) -> Int[Tensor, "batch pos"]:
        """Position of each new column, counted from the row's first real token; -1 before it."""
        if not self.padded:
            columns = torch.arange(self.start, self.start + self.length, device=self.device)
            return columns.expand(self.batch, -1)
        counted = self._mask.long().cumsum(-1) - 1
        return counted[:, self.start : self.start + self.length]

    @cached_property
    def prompt_lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens of each row's prompt. Outside ``generate`` everything given is prompt."""
        if self.given_prompt_lengths is not None:
            return self._given_lengths(self.given_prompt_lengths.to(self.device))
        if self.generation is not None and self.generation.attention_mask is not None:
            return self.generation.attention_mask.to(self.device).sum(-1)[self.rows]  # chunked prefill shows less
        columns = self.start + self.length if self.generation is None else self.generation.columns
        if not self.padded:
            return torch.full((self.batch,), columns, device=self.device)
        return self._mask[:, :columns].sum(-1)

    def _given_lengths(self, lengths: Int[Tensor, " row"] | Int[Tensor, ""]) -> Int[Tensor, " batch"]:
        if lengths.ndim == 0:
            return lengths.expand(self.batch)
        if len(lengths) != self.n_prompts:
            raise UserError(
                f"There are {len(lengths)} prompt_lengths but the batch has {self.n_prompts} prompts: give one per "
                "prompt, or one number for all."
            )
        return lengths[self.rows]

    @cached_property
    def rows(self) -> Int[Tensor, " batch"]:
        """The prompt row each batch row came from: beams and repeated samples share their prompt's row."""
        per_prompt = 1 if self.generation is None else max(1, self.batch // max(1, self.generation.rows))
        return torch.arange(self.batch, device=self.device) // per_prompt

    @property
    def uniform(self) -> tuple[int, int] | None:
        """(start, prompt columns) when every row has the same positions, so that masks need no tensors."""
        if self.padded or self.given_prompt_lengths is not None:
            return None
        if self.generation is not None and self.generation.attention_mask is not None:
            return None
        columns = self.start + self.length if self.generation is None else self.generation.columns
        return self.start, columns

    @cached_property
    def _mask(self) -> Tensor:
        """[batch, start + length] bool; columns generated since are real."""
        assert self.attention_mask is not None
        mask = self.attention_mask.bool().to(self.device)
        missing = self.start + self.length - mask.shape[1]
        if missing > 0:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], missing)], dim=1)
        return mask
