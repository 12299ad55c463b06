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
from workbench.cluster.splitting import split_width
from workbench.errors import UserError
from workbench.finished_batches import fingerprint
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

Ids = Sequence[Sequence[int]]


def score_continuations(subject: Subject, prompts: Prompts, metrics: Sequence[str], work: Work) -> pd.DataFrame:
    """The metrics of :data:`ANSWER`, one row per prompt.

    Raises :class:`UserError` for a prompt without answer, or without distractor where one is compared with.
    """
    wanted = [metric for metric in ANSWER if metric in metrics]
    if not wanted:
        return pd.DataFrame(index=range(len(prompts)))
    ids = encode(prompts, subject.model.tokenizer, subject.model.max_positions)
    scored = logprobs(subject, ids, continuations_of(prompts, subject, "answer"), work)
    answer = scored.sum_
    columns = {"answer_logprob": answer, "answer": answer / scored.tokens, "answer_prob": np.exp(answer)}
    if "answer_diff" in wanted:
        other = logprobs(subject, ids, continuations_of(prompts, subject, "distractor"), work).sum_
        columns["answer_diff"] = answer - other
    return pd.DataFrame({name: columns[name] for name in wanted})


def continuations_of(prompts: Prompts, subject: Subject, column: str) -> list[list[int]]:
    """Token ids of every row's answer (or distractor) in context."""
    continuations = []
    for number, row in enumerate(prompts):
        text = row.answer if column == "answer" else row.distractor
        if not text:
            raise UserError(f"Prompt {number} has no {column}; every row needs one here.")
        continuations.append(continuation_ids(row, subject.model.tokenizer, text))
    return continuations


class Logprobs:
    """Log-probabilities of continuations: ``sum_`` [row] in nats, ``tokens`` [row] how many tokens that is."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.sum_ = np.zeros(len(tokens))
        self.tokens = np.array(tokens, dtype=np.float64)


def logprobs(subject: Subject, prompts: Ids, continuations: Ids, work: Work) -> Logprobs:
    """Log-probability of each continuation [row] behind its prompt; one forward pass per batch."""
    _check_readable(subject, prompts, continuations)
    totals = Logprobs([len(continuation) for continuation in continuations])
    lengths = [len(prompt) + len(other) for prompt, other in zip(prompts, continuations, strict=True)]
    about = fingerprint([subject.name, subject.recipe])
    few = work.within_bytes(max(map(len, continuations), default=0) + 1, subject.model.vocab_size)

    def take(rows: list[int], sums: list[float]) -> None:
        totals.sum_[rows] = sums

    few.each(
        subject.name, lengths, partial(_sums, subject, prompts, continuations), take, subject.within,
        lambda rows: ["log-probabilities", about, _members(prompts, rows), _members(continuations, rows)],
    )  # fmt: skip
    return totals


def _sums(subject: Subject, prompts: Ids, continuations: Ids, rows: list[int]) -> list[float]:
    """Log-probability of the continuation of each of ``rows``, in nats."""
    with subject.applied_to(rows):
        logits = continuation_logits(subject, prompts, continuations, rows)
    wanted = [torch.tensor(continuations[row], device=logits[0].device)[:, None] for row in rows]
    return [
        float(row_logits.double().log_softmax(-1).gather(-1, at).sum())
        for row_logits, at in zip(logits, wanted, strict=True)
    ]


def text_logprobs(subject: Subject, texts: Prompts, work: Work) -> Logprobs:
    """Log-probability of each text after its first token. To a recipe, all but the first token are generated.

    Raises :class:`UserError` for a text of fewer than two tokens.
    """
    ids = encode(texts.turned(chat=False), subject.model.tokenizer, subject.model.max_positions)  # no user turns
    if short := [number for number, tokens in enumerate(ids) if len(tokens) < 2]:
        raise UserError(f"Neutral text {short[0]} has one token; perplexity needs at least two: remove it.")
    return logprobs(subject, [tokens[:1] for tokens in ids], [tokens[1:] for tokens in ids], work)


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
    sums = [np.zeros((len(continuations), 2)) for _ in subjects]
    lengths = [len(prompt) + len(other) for prompt, other in zip(prompts, continuations, strict=True)]
    about = fingerprint([(entry.name, entry.recipe) for entry in (base, *subjects)])

    def take(rows: list[int], divergences: list[list[tuple[float, float]]]) -> None:
        for values, new in zip(sums, divergences, strict=True):
            values[rows] = new

    texts = (prompts, *read, continuations)
    work.within_bytes(max(map(len, continuations), default=0) + 1, base.model.vocab_size).each(
        "KL per token", lengths, partial(_divergences, (base, *subjects), (prompts, *read), continuations), take,
        content=lambda rows: ["KL per token", about, [_members(ids, rows) for ids in texts]],
    )  # fmt: skip
    return sums


def _divergences(
    subjects: Sequence[Subject], read: Sequence[Ids], continuations: Ids, rows: list[int]
) -> list[list[tuple[float, float]]]:
    """KL(base || model) and KL(model || base) of each of ``rows``, for each subject behind the first, the base."""
    logits = (logits_at(subject, ids, continuations, rows) for subject, ids in zip(subjects, read, strict=True))
    theirs = next(logits)
    return [
        [(float(kl(other, own).mean()), float(kl(own, other).mean())) for own, other in zip(ours, theirs, strict=True)]
        for ours in logits
    ]


def _members(ids: Ids, rows: Sequence[int]) -> list[Sequence[int]]:
    return [ids[row] for row in rows]


class KLFromModels:
    """KL(model || subject) per token of given continuations, from the same models to many subjects.

    The models' own distributions are read once, at the start, and held where they fit into ``held_bytes`` and nothing
    is shared out over other processes; else they are read again for each subject, a batch at a time.
    """

    def __init__(
        self, models: Sequence[Subject], prompts: Ids, continuations: Ids, work: Work, held_bytes: int = 512 * 2**20
    ) -> None:
        """``models``: from which the divergence is taken, each as it is (a recipe of its own is applied)."""
        self.models, self.prompts, self.continuations = models, prompts, continuations
        longest = max(map(len, continuations), default=0) + 1
        self.work = work.within_bytes(longest, max(model.model.vocab_size for model in models))
        for model in models:
            _check_readable(model, prompts, continuations)
        tokens = sum(len(continuation) for continuation in continuations)
        fits = 4 * tokens * sum(model.model.vocab_size for model in models) <= held_bytes
        self._held = [self._read(model) for model in models] if fits and split_width() == 1 else None

    def of(self, subject: Subject) -> list[Float[np.ndarray, " row"]]:
        """For each model the mean over the tokens of a continuation, in nats; one forward pass of the subject."""
        _check_readable(subject, self.prompts, self.continuations)
        sums = [np.zeros(len(self.continuations)) for _ in self.models]
        about = fingerprint([(compared.name, compared.recipe) for compared in (*self.models, subject)])

        def take(rows: list[int], new: list[list[float]]) -> None:
            for values, divergences in zip(sums, new, strict=True):
                values[rows] = divergences

        self.work.each(
            "KL per token", self._lengths(), partial(self._compared, subject), take,
            content=lambda rows: [
                "KL from models", about, [_members(ids, rows) for ids in (self.prompts, self.continuations)]
            ],
        )  # fmt: skip
        return sums

    def _compared(self, subject: Subject, rows: list[int]) -> list[list[float]]:
        ours = logits_at(subject, self.prompts, self.continuations, rows)
        return [
            [float(kl(first, second).mean()) for first, second in zip(self._own(number, rows), ours, strict=True)]
            for number in range(len(self.models))
        ]

    def _own(self, number: int, rows: list[int]) -> list[Tensor]:
        if self._held is None:
            return logits_at(self.models[number], self.prompts, self.continuations, rows)
        return [self._held[number][row] for row in rows]

    def _read(self, model: Subject) -> dict[int, Tensor]:
        read: dict[int, Tensor] = {}
        self.work.each(
            f"KL per token: {model.name}", self._lengths(), partial(logits_at, model, self.prompts, self.continuations),
            lambda rows, logits: read.update(zip(rows, logits, strict=True)),
        )  # fmt: skip
        return read

    def _lengths(self) -> list[int]:
        return [len(prompt) + len(other) for prompt, other in zip(self.prompts, self.continuations, strict=True)]


def logits_at(subject: Subject, prompts: Ids, continuations: Ids, rows: list[int]) -> list[Tensor]:
    """For each of ``rows`` the logits [token, vocab] (float32, on the CPU) that predict its continuation."""
    with subject.within(), subject.applied_to(rows):
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
