"""Scores of one model, per prompt, from the token it would write next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch

from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.answers import answer_tokens
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode, pad_left
from workbench.typing import Float, Tensor

METRICS: dict[str, str] = {
    "accuracy": "share of prompts whose most likely next token begins the answer",
    "prob": "probability of the answer's first token",
    "logit_diff": "logit of the answer's first token minus the distractor's",
    "distracted": "share of prompts whose most likely next token begins the distractor",
    "entropy": "entropy of the next-token distribution, in nats",
    "kl": "KL(model || base) of the next-token distribution, in nats",
}
"""Name -> what it measures. All are read at the last prompt token."""


@runtime_checkable
class AppliedRecipe(Protocol):
    """Anything that changes a model inside a context, such as ``interventions.Recipe``."""

    def applied(self, model: AdaptedModel) -> AbstractContextManager[Any]:
        """Change ``model`` until the context is left."""


def next_token_logits(
    model: AdaptedModel, prompts: Prompts, recipe: AppliedRecipe | None = None, batch_size: int = 32
) -> Float[Tensor, "prompt vocab"]:
    """Logits at the last token of every prompt, float32 on the CPU; under ``recipe`` when one is given."""
    ids = encode(prompts, model.tokenizer, model.max_positions)
    found: list[Tensor | None] = [None] * len(ids)
    with nullcontext() if recipe is None else recipe.applied(model):
        for rows in batches([len(row) for row in ids], batch_size):
            logits = model.forward(pad_left([ids[i] for i in rows], pad_id(model.tokenizer)), logits="last")
            assert logits is not None
            for row, values in zip(rows, logits[:, -1].float().cpu(), strict=True):
                found[row] = values
    return torch.stack([row for row in found if row is not None])


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
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    tokens = (
        answer_tokens(prompts, tokenizer) if {"accuracy", "prob", "logit_diff", "distracted"} & set(metrics) else None
    )
    chosen = logits.argmax(-1)
    rows = torch.arange(len(logits))
    columns: dict[str, Any] = {}
    for metric in metrics:
        if metric in ("logit_diff", "distracted") and (tokens is None or tokens.distractor is None):
            raise UserError(f"The metric {metric} compares with a distractor: give prompts the column 'distractor'.")
        if metric == "accuracy" and tokens is not None:
            columns[metric] = chosen == tokens.answer
        elif metric == "prob" and tokens is not None:
            columns[metric] = logits.softmax(-1)[rows, tokens.answer]
        elif metric == "logit_diff" and tokens is not None and tokens.distractor is not None:
            columns[metric] = logits[rows, tokens.answer] - logits[rows, tokens.distractor]
        elif metric == "distracted" and tokens is not None and tokens.distractor is not None:
            columns[metric] = chosen == tokens.distractor
        elif metric == "entropy":
            columns[metric] = torch.distributions.Categorical(logits=logits).entropy()
        elif metric == "kl":
            columns[metric] = _kl(logits, logits if base_logits is None else base_logits)
    return pd.DataFrame({name: values.double().numpy() for name, values in columns.items()})


def _kl(logits: Tensor, base: Tensor) -> Tensor:
    """KL(model || base) per prompt, over the ids that both models have."""
    size = min(logits.shape[-1], base.shape[-1])
    ours, theirs = logits[:, :size].double().log_softmax(-1), base[:, :size].double().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1).clamp(min=0)
