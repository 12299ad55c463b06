"""Which tokens of an answer are scored: its first where that tells answers apart, else the whole answer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.behaviour.continuations import continuations_of
from workbench.behaviour.subject import Subject, Work, continuation_logits
from workbench.errors import UserError, unknown_name
from workbench.finished_batches import fingerprint
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.prompts.token_texts import token_texts

MODES = ("auto", "first", "whole")


class AnswersAgreeWarning(UserWarning):
    """Answers begin with the same token, so that a score of the first token cannot tell them apart."""


@dataclass(frozen=True)
class ScoredAnswers:
    """The tokens of every answer and distractor, and whether all of them are scored."""

    whole: bool
    answers: list[list[int]]
    distractors: list[list[int]] | None

    def table(self, tokenizer: Any) -> pd.DataFrame:
        """prompt, column (answer, distractor), scored (the texts of the scored tokens, joined by ``|``), tokens (how
        many the answer has)."""
        lines = []
        for column, many in (("answer", self.answers), ("distractor", self.distractors or [])):
            for prompt, ids in enumerate(many):
                read = ids if self.whole else ids[:1]
                text = "|".join(token_texts(read, tokenizer))
                lines.append({"prompt": prompt, "column": column, "scored": text, "tokens": len(ids)})
        return pd.DataFrame(lines)

    @property
    def text(self) -> str:
        """For people."""
        if not self.whole:
            return "answers are scored by their first token"
        return "answers are scored whole (all tokens, teacher-forced): some begin with the same token or a blank one"


def scored_answers(subject: Subject, prompts: Prompts, mode: str, *, warn: bool = True) -> ScoredAnswers:
    """What is scored of every answer.

    ``"auto"`` scores whole answers where two different ones begin with the same token, or an answer and its distractor
    do, or one begins with blanks alone (the space of ``" 45"``); ``"first"`` scores first tokens all the same, with an
    :class:`AnswersAgreeWarning`.
    """
    if mode not in MODES:
        raise unknown_name("way to score answers", mode, MODES)
    answers = continuations_of(prompts, subject, "answer")
    has_others = all(row.distractor for row in prompts)
    distractors = continuations_of(prompts, subject, "distractor") if has_others else None
    agree = _agree(answers, distractors) or _blank(answers, subject.model.tokenizer)
    if agree and mode == "first" and warn:
        text = subject.model.tokenizer.decode([agree[0]])
        warnings.warn(
            f"Answers begin with the same token or with blanks ({text!r}), so accuracy by first token cannot tell them "
            'apart: score them whole (scored="whole").',
            AnswersAgreeWarning,
            stacklevel=2,
        )
    return ScoredAnswers(mode == "whole" or (mode == "auto" and bool(agree)), answers, distractors)


def _blank(answers: Sequence[Sequence[int]], tokenizer: Any) -> list[int]:
    """First tokens of longer answers that are blanks alone."""
    firsts = {ids[0] for ids in answers if len(ids) > 1}
    return [token for token in sorted(firsts) if tokenizer is not None and not tokenizer.decode([token]).strip()]


def whole_scores(
    subject: Subject, prompts: Prompts, scored: ScoredAnswers, metrics: Sequence[str], work: Work
) -> pd.DataFrame:
    """The metrics of :data:`READ_ANSWERS`, and confidence, over whole answers; one row per prompt.

    accuracy: whether the model, forced through the answer, would have written every token of it; prob: its probability;
    logit_diff: its log-probability minus the distractor's; confidence: the probability of what the model would have
    written, up to the first token that is not the answer's.
    """
    ids = encode(prompts, subject.model.tokenizer, subject.model.max_positions)
    answer = forced_answers(subject, ids, scored.answers, work)
    columns = {
        "accuracy": answer["right"], "prob": np.exp(answer["logprob"]), "confidence": answer["confidence"],
        "brier": (answer["confidence"] - answer["right"]) ** 2,
    }  # fmt: skip
    if {"logit_diff", "distracted"} & set(metrics):
        if scored.distractors is None:
            raise UserError(
                "logit_diff and distracted compare with a distractor: give prompts the column 'distractor'."
            )
        other = forced_answers(subject, ids, scored.distractors, work)
        columns |= {"logit_diff": answer["logprob"] - other["logprob"], "distracted": other["right"]}
    return pd.DataFrame({name: columns[name] for name in metrics})


def forced_answers(
    subject: Subject, ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], work: Work
) -> dict[str, np.ndarray]:
    """Of each answer [row] behind its prompt: whether the model would write all of it (``right``), its ``logprob``, and
    the ``confidence`` of what the model would write up to the first other token."""
    columns = {name: np.zeros(len(ids)) for name in ("right", "logprob", "confidence")}
    lengths = [len(prompt) + len(other) for prompt, other in zip(ids, answers, strict=True)]
    about = fingerprint([subject.name, subject.recipe])

    def take(rows: list[int], scores: dict[str, list[float]]) -> None:
        for name, new in scores.items():
            columns[name][rows] = new

    work.each(
        f"{subject.name}: answers", lengths, partial(_forced_batch, subject, ids, answers), take, subject.within,
        lambda rows: ["answers", about, [ids[row] for row in rows], [answers[row] for row in rows]],
    )  # fmt: skip
    return columns


def _forced_batch(
    subject: Subject, ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], rows: list[int]
) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {"right": [], "logprob": [], "confidence": []}
    with subject.applied_to(rows):
        logits = continuation_logits(subject, ids, answers, rows)
    for row, logit in zip(rows, logits, strict=True):
        scores = logit.double().log_softmax(-1)
        wanted = torch.tensor(answers[row], device=scores.device)
        best, likeliest = scores.max(-1)
        same = (likeliest == wanted).cumprod(0)
        reached = torch.cat([same.new_ones(1), same[:-1]])
        columns["right"].append(float(same[-1]))
        columns["logprob"].append(float(scores.gather(1, wanted[:, None]).sum()))
        columns["confidence"].append(float((best * reached).sum().exp()))
    return columns


def _agree(answers: Sequence[Sequence[int]], distractors: Sequence[Sequence[int]] | None) -> list[int]:
    """First tokens that do not tell answers apart."""
    first: dict[int, tuple[int, ...]] = {}
    clashes = [answer[0] for answer in answers if first.setdefault(answer[0], tuple(answer)) != tuple(answer)]
    if distractors is not None:
        pairs = zip(answers, distractors, strict=True)
        clashes += [mine[0] for mine, other in pairs if mine[0] == other[0] and list(mine) != list(other)]
    return clashes
