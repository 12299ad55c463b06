"""Measures every compared model, family of metrics by family, and keeps the numbers by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from workbench.behaviour.continuations import continuations_of, kl_per_token, score_continuations, text_logprobs
from workbench.behaviour.fitted import state_scores
from workbench.behaviour.generation import Reply, generate_replies
from workbench.behaviour.held_logits import HeldLogits
from workbench.behaviour.metrics import ANSWER, CONTINUATION, NEXT_TOKEN, READ_ANSWERS, SHARES, TEXT, WHOLE
from workbench.behaviour.options import DiffOptions
from workbench.behaviour.scored_answers import ScoredAnswers, scored_answers, whole_scores
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scores import score_rows
from workbench.behaviour.subject import Subject, Work, last_logits
from workbench.behaviour.texts import score_texts
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.answers import answer_tokens
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Tensor
from workbench.vllm.routing import routed


@dataclass(frozen=True, eq=False)
class Compared:
    """One line of a comparison: a model, or the draws of a control, which are averaged."""

    name: str
    subjects: tuple[Subject, ...]
    is_control: bool = False
    prompts: Prompts | None = None
    """What it reads, where that is not what all read: row for row the same questions."""

    def reads(self, shared: Prompts) -> Prompts:
        """Its own prompts, or the shared ones."""
        return shared if self.prompts is None else self.prompts


@dataclass
class Measured:
    """Numbers by prompt of one compared model: a table per draw (one where it is no control)."""

    frames: list[pd.DataFrame]
    neutral: list[np.ndarray] = field(default_factory=list)
    """[text, (log-probability, tokens)] per draw."""
    replies: list[list[Reply]] | None = None
    """Of a model that is no control."""

    def mean(self) -> pd.DataFrame:
        """One row per prompt, averaged over draws."""
        return self.frames[0] if len(self.frames) == 1 else pd.concat(self.frames).groupby(level=0).mean()


@dataclass(frozen=True, eq=False)
class Trial:
    """Prompts, metrics and settings that all compared models share."""

    prompts: Prompts
    metrics: tuple[str, ...]
    options: DiffOptions
    batch_size: int
    seed: int
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    """Those of the metrics that are no built-in ones, by name."""

    @property
    def work(self) -> Work:
        return Work(self.batch_size, self.options.progress)

    def metrics_of(self, family: dict[str, str]) -> list[str]:
        """The metrics of one family that are wanted; calibration reads two of the next token's."""
        wanted = set(self.metrics) | ({"accuracy", "confidence"} if "ece" in self.metrics else set())
        return [name for name in dict.fromkeys([*self.metrics, *family]) if name in family and name in wanted]

    def scored(
        self, subject: Subject, prompts: Prompts | None = None, mode: str | None = None, *, warn: bool = True
    ) -> ScoredAnswers | None:
        """Which tokens of the answers are scored behind ``prompts``; None where no metric reads one."""
        if not set(READ_ANSWERS) & set(self.metrics_of(NEXT_TOKEN)):
            return None
        return scored_answers(subject, prompts or self.prompts, mode or self.options.scored, warn=warn)

    @property
    def generates(self) -> bool:
        by_texts = bool(self.metrics_of(CONTINUATION)) and self.options.continuation != "answer"
        return bool(self.metrics_of(TEXT)) or bool(self.behaviours) or self.options.texts or by_texts

    @property
    def rules(self) -> list[Behaviour]:
        """Behaviours that read a text alone."""
        return [behaviour for behaviour in self.behaviours.values() if behaviour.states is None]

    @property
    def shares(self) -> frozenset[str]:
        """Metrics that count prompts."""
        return SHARES | {name for name, behaviour in self.behaviours.items() if behaviour.share}


def measure(compared: Sequence[Compared], trial: Trial) -> dict[str, Measured]:
    """Every compared model by name; the first must be the base and the second the tuned model."""
    _refuse_what_lacks(trial)
    measured = {
        variant.name: Measured([pd.DataFrame(index=range(len(trial.prompts))) for _ in variant.subjects])
        for variant in compared
    }
    models: dict[str, AdaptedModel] = {
        subject.model.role: subject.model for variant in compared for subject in variant.subjects
    }
    with routed(models, trial.options.executor, trial.options.engine_settings):
        _next_token(compared, trial, measured)
        _answers(compared, trial, measured)
        _texts(compared, trial, measured)
        _per_token(compared, trial, measured)
        _neutral(compared, trial, measured)
    return measured


def _next_token(compared: Sequence[Compared], trial: Trial, measured: dict[str, Measured]) -> None:
    if not (metrics := trial.metrics_of(NEXT_TOKEN)):
        return
    scored = trial.scored(compared[0].subjects[0], compared[0].reads(trial.prompts))
    if scored is not None and scored.whole:
        whole = [name for name in metrics if name in READ_ANSWERS]
        whole += ["confidence"] if "confidence" in metrics and {"ece", "brier"} & set(trial.metrics) else []
        metrics = [name for name in metrics if name not in whole]
        for variant in compared:
            own = (
                scored
                if variant.prompts is None and compared[0].prompts is None
                else trial.scored(variant.subjects[0], variant.reads(trial.prompts), "whole", warn=False)
            )
            assert own is not None
            for draw, subject in enumerate(variant.subjects):
                scores = whole_scores(subject, variant.reads(trial.prompts), own, whole, trial.work)
                _add(measured[variant.name], draw, scores)
        if not metrics:
            return
    base = HeldLogits(len(trial.prompts)) if "kl" in metrics else None
    for number, variant in enumerate(compared):
        for draw, subject in enumerate(variant.subjects):
            scores = _scored_batches(subject, variant.reads(trial.prompts), metrics, base, trial.work, number == 0)
            _add(measured[variant.name], draw, scores)


def _scored_batches(
    subject: Subject, prompts: Prompts, metrics: Sequence[str], base: HeldLogits | None, work: Work, is_base: bool
) -> pd.DataFrame:
    """One row per prompt, scored batch by batch beside the base's logits, which the base itself puts into ``base``."""
    tokenizer = subject.model.tokenizer
    tokens = answer_tokens(prompts, tokenizer) if set(metrics) & set(READ_ANSWERS) else None
    parts: list[pd.DataFrame] = []

    def take(rows: list[int], logits: Tensor) -> None:
        if base is not None and is_base:
            base.put(rows, logits)
        beside = None if base is None or is_base else base[rows]
        own = None if tokens is None else tokens.rows(rows)
        parts.append(score_rows(logits, own, metrics, beside).set_axis(rows))

    last_logits(subject, encode(prompts, tokenizer, subject.model.max_positions), take, work)
    return pd.concat(parts).sort_index()


def _answers(compared: Sequence[Compared], trial: Trial, measured: dict[str, Measured]) -> None:
    if not (metrics := trial.metrics_of(ANSWER)):
        return
    for variant in compared:
        for draw, subject in enumerate(variant.subjects):
            rows = variant.reads(trial.prompts)
            _add(measured[variant.name], draw, score_continuations(subject, rows, metrics, trial.work))


def _texts(compared: Sequence[Compared], trial: Trial, measured: dict[str, Measured]) -> None:
    if not trial.generates:
        return
    metrics, decoding = trial.metrics_of(TEXT), trial.options.decoding(trial.seed)
    base: list[list[Reply]] | None = None
    for variant in compared:
        if variant.is_control and not (metrics or trial.behaviours):
            continue
        for draw, subject in enumerate(variant.subjects):
            rows = variant.reads(trial.prompts)
            replies = generate_replies(subject, rows, decoding, trial.work)
            base = replies if base is None else base
            table = score_texts(replies, base, rows, metrics, trial.options.refusal, trial.rules)
            _add(measured[variant.name], draw, table)
            _add(measured[variant.name], draw, state_scores(subject, rows, replies, trial.behaviours, trial.work))
            measured[variant.name].replies = None if variant.is_control else replies


def _per_token(compared: Sequence[Compared], trial: Trial, measured: dict[str, Measured]) -> None:
    if not (metrics := trial.metrics_of(CONTINUATION)):
        return
    base = compared[0].subjects[0]
    ids = [
        encode(variant.reads(trial.prompts), subject.model.tokenizer, subject.model.max_positions)
        for variant in compared
        for subject in variant.subjects
    ]
    if trial.options.continuation == "answer":
        continuations = continuations_of(compared[0].reads(trial.prompts), base, "answer")
    else:
        replies = measured[trial.options.continuation].replies
        assert replies is not None
        continuations = [list(samples[0].ids) for samples in replies]
    places = [(variant.name, draw, subject) for variant in compared for draw, subject in enumerate(variant.subjects)]
    values = kl_per_token(base, [subject for _, _, subject in places], ids[0], continuations, trial.work, ids)
    for (name, draw, _), both in zip(places, values, strict=True):
        table = pd.DataFrame(both, columns=list(CONTINUATION))
        _add(measured[name], draw, table[metrics])


def _neutral(compared: Sequence[Compared], trial: Trial, measured: dict[str, Measured]) -> None:
    if "perplexity" not in trial.metrics:
        return
    texts = Prompts.of(trial.options.neutral)
    for variant in compared:
        for subject in variant.subjects:
            own = text_logprobs(subject, texts, trial.work)
            measured[variant.name].neutral.append(np.stack([own.sum_, own.tokens], axis=1))


def _add(measured: Measured, draw: int, table: pd.DataFrame) -> None:
    measured.frames[draw] = pd.concat([measured.frames[draw], table], axis=1)


def _refuse_what_lacks(trial: Trial) -> None:
    """What can be refused before a model runs."""
    if not trial.metrics:
        raise UserError("There is no metric to compare by: give at least one, such as accuracy.")
    if "perplexity" in trial.metrics and trial.options.neutral is None:
        raise UserError("The metric perplexity needs neutral texts: give them as neutral=.")
    if WHOLE.keys() & set(trial.metrics) and len(trial.prompts) < 1:
        raise UserError("There are no prompts to compare on: give at least one.")
