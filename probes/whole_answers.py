"""Whole answers as what a model is judged by: the summed log-probability of every token, read in one forward pass.

Each prompt runs once with its answer and once with its distractor behind it (teacher forcing). Prompts stay aligned at
their last token: shorter answers are filled on the right, where nothing looks back at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.prompts.answers import continuation_ids
from workbench.typing import Float, Int, Tensor

NOTHING = -1
"""Stands where a row has no further answer token."""
_ROWS = 8
"""Rows whose log-probabilities are made at once."""


@dataclass(frozen=True)
class Continuations:
    """The answer tokens that run behind each prompt; every prompt has as many answers."""

    tokens: list[list[list[int]]]
    """[prompt][answer][token], as answer and distractor."""

    @property
    def per_prompt(self) -> int:
        """Rows of each prompt."""
        return len(self.tokens[0])

    @property
    def width(self) -> int:
        """Columns behind the last prompt token; what the last answer token would lead to is not read."""
        return max(len(tokens) for row in self.tokens for tokens in row) - 1

    def rows(self, ids: Sequence[Sequence[int]], members: Sequence[int], filler: int) -> list[list[int]]:
        """The token ids of some prompts with their continuations, those of a prompt side by side."""
        rows = []
        for number in members:
            for token in self.tokens[number]:
                fill = [filler] * (self.width - len(token) + 1)
                rows.append([*ids[number], *token[:-1], *fill])
        return rows

    def targets(self, members: Sequence[int]) -> Int[Tensor, "row token"]:
        """The token that is read at each of the last ``width + 1`` columns, or :data:`NOTHING`."""
        lists = [token for number in members for token in self.tokens[number]]
        return torch.tensor([[*sequence, *[NOTHING] * (self.width + 1 - len(sequence))] for sequence in lists])

    def check_room(self, lengths: Sequence[int], room: int | None) -> None:
        """Raise :class:`UserError` where a prompt of ``lengths`` tokens and its answers exceed ``room`` positions."""
        for number, length in enumerate(lengths):
            if room is not None and length + self.width > room:
                raise UserError(
                    f"Prompt {number}: {length} tokens and an answer of up to {self.width + 1} do not fit in the "
                    f"model's {room} positions; shorten the answers."
                )


def continuations(rows: Prompts, tokenizer: Any, lengths: Sequence[int], room: int | None) -> Continuations:
    """The whole answers of ``rows``, and their distractors where every row has one.

    Raises:
        UserError: An answer is missing, or prompt and answer do not fit in the model's ``room``.
    """
    if missing := [number for number, row in enumerate(rows) if not row.answer]:
        raise UserError(
            f"Prompt {missing[0]} has no answer; answer_tokens='all' scores whole answers: give the column 'answer', "
            "or prompts from wb.contrast(pair, questions, whole=True)."
        )
    paired = all(row.distractor for row in rows)
    made = Continuations([
        [continuation_ids(row, tokenizer, text) for text in ((row.answer, row.distractor) if paired else (row.answer,))]
        for row in rows
    ])  # fmt: skip
    made.check_room(lengths, room)
    return made


def summed_log_probability(
    logits: Float[Tensor, "row token vocab"], targets: Int[Tensor, "prompt token"]
) -> Float[Tensor, "row one"]:
    """The log-probability of each row's answer, summed over its tokens; copies of a row stand side by side.

    The softmax is taken over a few rows at a time, so that no second tensor of the vocabulary's size is held.
    """
    copies = len(logits) // len(targets)
    wanted = targets.to(logits.device).repeat_interleave(copies, 0)
    sums = [_of_rows(logits[at : at + _ROWS], wanted[at : at + _ROWS]) for at in range(0, len(logits), _ROWS)]
    return torch.cat(sums)[:, None]


def _of_rows(logits: Float[Tensor, "row token vocab"], wanted: Int[Tensor, "row token"]) -> Float[Tensor, " row"]:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = precise.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
    each = log_probs - precise.logsumexp(-1)
    return each.masked_fill(wanted == NOTHING, 0.0).sum(-1)
