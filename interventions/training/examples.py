"""Training rows as token ids: a prompt, the answer to learn, and for preferences the answer to avoid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import UserError
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Int, Tensor

IGNORED = -100
"""Label of a token that the loss leaves out."""


@dataclass(frozen=True)
class Example:
    """Token ids of one row."""

    prompt: list[int]
    answer: list[int]
    rejected: list[int] | None = None
    reference: tuple[float, ...] | None = None
    """Numbers that the objective gets with the row: log-probabilities of (answer, rejected) under the untouched model,
    for DPO, or what its states should be."""


def examples_of(prompts: Any, tokenizer: Any, *, preferences: bool = False, end: bool = True) -> list[Example]:
    """One example per row of ``prompts`` with its ``answer`` (and ``distractor`` for ``preferences``).

    ``end``: the model also learns to stop: the end-of-text token follows each answer. Raises
    :class:`UserError` naming the row that lacks an answer or a distractor.
    """
    if tokenizer is None:
        raise UserError("This model has no tokenizer, which training rows need: load it with one.")
    rows = Prompts.of(prompts)
    eos = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    check_answers(rows, preferences=preferences)
    made = []
    for row, ids in zip(rows, encode(rows, tokenizer), strict=True):
        wrong = continuation_ids(row, tokenizer, row.distractor) + eos if preferences else None
        made.append(Example(ids, continuation_ids(row, tokenizer) + eos, wrong))
    return made


def check_answers(rows: Prompts, *, preferences: bool = False) -> None:
    """Raises :class:`UserError` naming the first row that lacks an answer, or for ``preferences`` a distractor."""
    for number, row in enumerate(rows):
        if not row.answer or (preferences and not row.distractor):
            missing = "answer" if not row.answer else "distractor (the answer to avoid)"
            raise UserError(f"Prompt {number} has no {missing}: training needs one in every row.")


@dataclass(frozen=True)
class Collator:
    """Right-padded batches for a trainer; for preferences all answers come first, then all rejected ones."""

    pad: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        pairs = [(example.prompt, example.answer) for example in examples]
        if examples[0].rejected is not None:
            pairs += [(example.prompt, example.rejected or []) for example in examples]
        batch = self._padded(pairs)
        if examples[0].reference is not None:
            batch["reference"] = torch.tensor([example.reference for example in examples])
        return batch

    def _padded(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.full((len(pairs), longest), self.pad)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(pairs):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
            mask[row, :end] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def answer_log_probs(logits: Float[Tensor, "row pos vocab"], labels: Int[Tensor, "row pos"]) -> Float[Tensor, " row"]:
    """The log-probability, in nats, of each row's labelled tokens."""
    return -_token_losses(logits, labels).sum(-1)


def answer_loss(logits: Float[Tensor, "row pos vocab"], labels: Int[Tensor, "row pos"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, averaged over the labelled tokens of the batch."""
    counted = (labels[:, 1:] != IGNORED).sum()
    return _token_losses(logits, labels).sum() / counted


def preference_loss(
    log_probs: Float[Tensor, " twice_rows"], reference: Float[Tensor, "rows 2"], beta: float
) -> Float[Tensor, ""]:
    """DPO (Rafailov et al. 2023): -log sigmoid(beta * (the answer's gain over the rejected one's)).

    ``log_probs``: of all answers, then of all rejected ones, under the model in training; ``reference``: of both
    under the untouched model.
    """
    chosen, rejected = log_probs.chunk(2)
    gain = (chosen - reference[:, 0]) - (rejected - reference[:, 1])
    return -torch.nn.functional.logsigmoid(beta * gain).mean()


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    shifted = logits[:, :-1].float().transpose(1, 2)
    return torch.nn.functional.cross_entropy(shifted, labels[:, 1:], ignore_index=IGNORED, reduction="none")
