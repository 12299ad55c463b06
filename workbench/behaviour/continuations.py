"""Scores of given continuations: every token is predicted from the true ones before it (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from workbench.behaviour.metrics import ANSWER
from workbench.behaviour.scores import kl
from workbench.behaviour.subject import Subject, Work, continuation_logits
from workbench.errors import UserError
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

Ids = Sequence[Sequence[int]]


def score_continuations(subject: Subject, prompts: Prompts, metrics: Sequence[str], work: Work) -> pd.DataFrame:
    """The metrics of :data:`ANSWER`, one row per prompt.

    Raises :class:`UserError` for a prompt without answer, or without distractor where one is compared with.
    """
    asked = [metric for metric in ANSWER if metric in metrics]
    if not asked:
        return pd.DataFrame(index=range(len(prompts)))
    ids = encode(prompts, subject.model.tokenizer, subject.model.max_positions)
    scored = logprobs(subject, ids, continuations_of(prompts, subject, "answer"), work)
    answer = scored.sum_
    found = {"answer_logprob": answer, "answer": answer / scored.tokens, "answer_prob": np.exp(answer)}
    if "answer_diff" in asked:
        other = logprobs(subject, ids, continuations_of(prompts, subject, "distractor"), work).sum_
        found["answer_diff"] = answer - other
    return pd.DataFrame({name: found[name] for name in asked})


def continuations_of(prompts: Prompts, subject: Subject, column: str) -> list[list[int]]:
    """Token ids of every row's answer (or distractor) in context."""
    found = []
    for number, row in enumerate(prompts):
        text = row.answer if column == "answer" else row.distractor
        if not text:
            raise UserError(f"Prompt {number} has no {column}; every row needs one here.")
        found.append(continuation_ids(row, subject.model.tokenizer, text))
    return found


class Logprobs:
    """Log-probabilities of continuations: ``sum_`` [row] in nats, ``tokens`` [row] how many tokens that is."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.sum_ = np.zeros(len(tokens))
        self.tokens = np.array(tokens, dtype=np.float64)


def logprobs(subject: Subject, prompts: Ids, continuations: Ids, work: Work) -> Logprobs:
    """Log-probability of each continuation [row] behind its prompt; one forward pass per batch."""
    _check_readable(subject, prompts, continuations)
    found = Logprobs([len(continuation) for continuation in continuations])
    lengths = [len(prompt) + len(other) for prompt, other in zip(prompts, continuations, strict=True)]

    def take(rows: list[int], sums: list[float]) -> None:
        found.sum_[rows] = sums

    work.each(subject.name, lengths, partial(_sums, subject, prompts, continuations), take, subject.applied)
    return found


def _sums(subject: Subject, prompts: Ids, continuations: Ids, rows: list[int]) -> list[float]:
    with subject.applied_to(rows):
        logits = continuation_logits(subject, prompts, continuations, rows)
    sums = []
    for row, logit in zip(rows, logits, strict=True):
        wanted = torch.tensor(continuations[row], device=logit.device)[:, None]
        sums.append(float(logit.double().log_softmax(-1).gather(-1, wanted).sum()))
    return sums


def text_logprobs(subject: Subject, texts: Prompts, work: Work) -> Logprobs:
    """Log-probability of each text after its first token. To a recipe, all but the first token are generated.

    Raises :class:`UserError` for a text of fewer than two tokens.
    """
    ids = encode(texts.turned(chat=False), subject.model.tokenizer, subject.model.max_positions)  # no user turns
    if short := [number for number, one in enumerate(ids) if len(one) < 2]:
        raise UserError(f"Neutral text {short[0]} has one token; perplexity needs at least two: remove it.")
    return logprobs(subject, [one[:1] for one in ids], [one[1:] for one in ids], work)


def kl_per_token(
    base: Subject,
    subjects: Sequence[Subject],
    prompts: Ids,
    continuations: Ids,
    work: Work,
    each: Sequence[Ids] | None = None,
) -> list[Float[np.ndarray, "row direction"]]:
    """For each subject the mean over the tokens of a continuation of KL(base || model) and KL(model || base), in nats.

    ``each``: what each subject reads before the continuation, where that is not what the base reads (``prompts``). The
    distributions of one batch are held at a time.
    """
    read = [prompts] * len(subjects) if each is None else each
    for subject, own in zip((base, *subjects), (prompts, *read), strict=True):
        _check_readable(subject, own, continuations)
    found = [np.zeros((len(continuations), 2)) for _ in subjects]
    lengths = [len(prompt) + len(other) for prompt, other in zip(prompts, continuations, strict=True)]

    def take(rows: list[int], both: list[np.ndarray]) -> None:
        for values, batch in zip(found, both, strict=True):
            values[rows] = batch

    work.each("KL per token", lengths, partial(_divergences, base, subjects, (prompts, read), continuations), take)
    return found


def _divergences(
    base: Subject,
    subjects: Sequence[Subject],
    reads: tuple[Ids, Sequence[Ids]],
    continuations: Ids,
    rows: list[int],
) -> list[Float[np.ndarray, "row direction"]]:
    """Both divergences of each subject on one batch; ``reads``: what the base and what each subject reads."""
    prompts, each = reads
    theirs = logits_at(base, prompts, continuations, rows)
    found = []
    for subject, own in zip(subjects, each, strict=True):
        ours = logits_at(subject, own, continuations, rows)
        pairs = zip(ours, theirs, strict=True)
        found.append(np.array([(float(kl(other, one).mean()), float(kl(one, other).mean())) for one, other in pairs]))
    return found


def logits_at(subject: Subject, prompts: Ids, continuations: Ids, rows: list[int]) -> list[Tensor]:
    """For each of ``rows`` the logits [token, vocab] (float32, on the CPU) that predict its continuation."""
    with subject.applied(), subject.applied_to(rows):
        return [
            continuation_logit.cpu()
            for continuation_logit in continuation_logits(subject, prompts, continuations, rows)
        ]


def _check_readable(subject: Subject, prompts: Ids, continuations: Ids) -> None:
    limit = subject.model.max_positions
    longest = max(len(prompt) + len(other) for prompt, other in zip(prompts, continuations, strict=True))
    if limit is not None and longest > limit:
        raise UserError(
            f"A prompt with its continuation has {longest} tokens and the limit is {limit}; shorten prompts or answers."
        )
    if max(max(continuation, default=0) for continuation in continuations) >= subject.model.vocab_size:
        raise UserError(
            f"A continuation holds a token that {subject.model.name} does not know (its vocabulary has "
            f"{subject.model.vocab_size}); compare over the text of the other model, or over answers."
        )
