"""Scores of one model, per prompt, from the token it would write next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from workbench.behaviour.metrics import NEXT_TOKEN, READ_ANSWERS, check_metrics
from workbench.behaviour.subject import AppliedRecipe, Subject, Work, last_logits
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.answers import AnswerTokens, answer_tokens
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

__all__ = ["AppliedRecipe", "next_token_logits", "score_answers"]

_READ_DISTRACTORS = {"logit_diff", "distracted"}


def next_token_logits(
    model: AdaptedModel, prompts: Prompts, recipe: AppliedRecipe | None = None, batch_size: int = 32
) -> Float[Tensor, "prompt vocab"]:
    """Logits at the last token of every prompt, float32 on the CPU; under ``recipe`` when one is given."""
    return logits_of(Subject("model", model, recipe), prompts, Work(batch_size))


def logits_of(subject: Subject, prompts: Prompts, work: Work) -> Float[Tensor, "prompt vocab"]:
    """Logits of a subject at the last token of every prompt, float32 on the CPU."""
    ids = encode(prompts, subject.model.tokenizer, subject.model.max_positions)
    by_row: dict[int, Tensor] = {}
    last_logits(subject, ids, lambda rows, logits: by_row.update(zip(rows, logits, strict=True)), work)
    return torch.stack([by_row[row] for row in range(len(ids))])


def score_answers(
    logits: Float[Tensor, "prompt vocab"],
    prompts: Prompts,
    tokenizer: Any,
    metrics: Sequence[str],
    base_logits: Float[Tensor, "prompt vocab_base"] | None = None,
) -> pd.DataFrame:
    """One row per prompt, one column per metric.

    Answers count by their first token in context. With vocabularies of different sizes ``kl`` is over the ids that
    both have. Raises :class:`UserError` for an unknown metric, and for one that needs a distractor that is missing.
    """
    check_metrics(metrics, NEXT_TOKEN)
    tokens = answer_tokens(prompts, tokenizer) if set(READ_ANSWERS) & set(metrics) else None
    return score_rows(logits, tokens, metrics, base_logits)


def score_rows(
    logits: Float[Tensor, "prompt vocab"],
    tokens: AnswerTokens | None,
    metrics: Sequence[str],
    base_logits: Float[Tensor, "prompt vocab_base"] | None = None,
) -> pd.DataFrame:
    """:func:`score_answers` with the answers' tokens at hand, a few rows at a time: distributions are never held for
    all of them."""
    few = rows_at_once(logits.shape[-1])
    parts = [
        _scored(
            logits[start : start + few],
            None if tokens is None else tokens.rows(slice(start, start + few)),
            metrics,
            None if base_logits is None else base_logits[start : start + few],
        )
        for start in range(0, len(logits), few)
    ]
    return pd.concat(parts, ignore_index=True)


def rows_at_once(vocab: int) -> int:
    """Rows of a vocabulary whose distributions are made at a time: some 32 MB each in float64."""
    return max(1, 2**22 // vocab)


def _scored(
    logits: Float[Tensor, "row vocab"],
    tokens: AnswerTokens | None,
    metrics: Sequence[str],
    base_logits: Float[Tensor, "row vocab_base"] | None,
) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for metric in metrics:
        if metric in READ_ANSWERS and tokens is not None:
            columns[metric] = _beside_the_answer(metric, logits, tokens)
        elif metric == "entropy":
            columns[metric] = torch.distributions.Categorical(logits=logits).entropy()
        elif metric == "confidence":
            columns[metric] = logits.softmax(-1).amax(-1)
        elif metric == "kl":
            columns[metric] = kl(logits, logits if base_logits is None else base_logits)
    return pd.DataFrame({name: values.double().numpy() for name, values in columns.items()})


def kl(first: Float[Tensor, "token vocab"], second: Float[Tensor, "token vocab_other"]) -> Float[Tensor, " token"]:
    """KL(first || second) in nats from logits, over the ids that both have, in float64."""
    size = min(first.shape[-1], second.shape[-1])
    few = rows_at_once(size)
    parts = zip(first[:, :size].split(few), second[:, :size].split(few), strict=True)
    return torch.cat([_kl(ours.double().log_softmax(-1), theirs.double().log_softmax(-1)) for ours, theirs in parts])


def _kl(ours: Float[Tensor, "token vocab"], theirs: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    return (ours.exp() * (ours - theirs)).sum(-1).clamp(min=0)


def _beside_the_answer(metric: str, logits: Tensor, tokens: AnswerTokens) -> Tensor:
    if metric in _READ_DISTRACTORS and tokens.distractor is None:
        raise UserError(f"The metric {metric} compares with a distractor: give prompts the column 'distractor'.")
    rows, likeliest = torch.arange(len(logits)), logits.argmax(-1)
    right = likeliest == tokens.answer
    if metric == "accuracy":
        return right
    if metric == "prob":
        return logits.softmax(-1)[rows, tokens.answer]
    if metric == "brier":
        return (logits.softmax(-1).amax(-1) - right.float()).square()
    assert tokens.distractor is not None
    if metric == "distracted":
        return likeliest == tokens.distractor
    return logits[rows, tokens.answer] - logits[rows, tokens.distractor]
