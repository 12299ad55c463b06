"""A recipe at any strength, and one behaviour measured at many strengths, as one batch where rows may differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.behaviour.continuations import score_continuations, text_logprobs
from workbench.behaviour.fitted import state_scores
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.held_logits import HeldLogits
from workbench.behaviour.metrics import ANSWER, NEXT_TOKEN, TEXT, check_metrics
from workbench.behaviour.scorers import Behaviour, read_metrics
from workbench.behaviour.scores import score_answers
from workbench.behaviour.subject import AppliedRecipe, Subject, Work, last_logits
from workbench.behaviour.texts import TextRule, score_texts
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

DOSED = (*NEXT_TOKEN, *ANSWER, *TEXT)
"""Metrics that can be followed over strengths."""


@dataclass(frozen=True, eq=False)
class Dose:
    """A recipe at any strength: ``at(2.0)``. ``rows([0.0, 1.0])``, where it can be done, is the recipe that gives the
    prompts of a batch these strengths in order (see ``interventions.dose``)."""

    at: Callable[[float], AppliedRecipe]
    rows: Callable[[Sequence[float]], AppliedRecipe] | None = None

    @classmethod
    def of(cls, source: Any) -> Dose:
        """A dose itself; a recipe that can be multiplied by its strength; or a function of the strength, such as a
        knob's ``recipe``. Raises :class:`UserError` for anything else."""
        if isinstance(source, Dose):
            return source
        if isinstance(source, AppliedRecipe) and hasattr(source, "__mul__"):
            recipe: Any = source
            return cls(lambda strength: recipe * strength)
        if callable(source):
            return cls(source)
        raise UserError(
            f"{type(source).__name__} has no strength: give a recipe, or a function that makes one from a strength."
        )


@dataclass(frozen=True, eq=False)
class Followed:
    """One metric of one model on prompts, at many strengths of any dose.

    ``base_logits`` [prompt, vocab] and ``base_replies`` are what ``kl`` and the metrics of texts compare with.
    """

    model: AdaptedModel
    prompts: Prompts
    metric: str
    strengths: tuple[float, ...]
    work: Work
    max_new_tokens: int
    refusal: TextRule
    behaviour: Behaviour | None = None
    """What ``metric`` names where it is no built-in metric."""
    base_logits: HeldLogits | None = None
    base_replies: list[list[Reply]] | None = None

    @classmethod
    def beside(cls, base: AdaptedModel, **settings: Any) -> Followed:
        """With what the metric compares with, measured on ``base``."""
        (name,), behaviours = read_metrics([settings["metric"]])
        settings |= {"metric": name, "behaviour": behaviours.get(name)}
        made = cls(**settings)
        if made.behaviour is None:
            check_metrics([made.metric], DOSED)
        plain = Subject("base", base)
        logits = HeldLogits.of(plain, made.prompts, made.work) if made.metric == "kl" else None
        generates = made.metric in TEXT or made.behaviour is not None
        replies = generate_replies(plain, made.prompts, made.decoding, made.work) if generates else None
        return cls(**settings, base_logits=logits, base_replies=replies)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_new_tokens)

    def plain(self) -> Float[np.ndarray, " prompt"]:
        """The metric of the model as it is."""
        return self._scores(Subject("as it is", self.model), self.prompts, list(range(len(self.prompts))))

    def values(self, dose: Dose) -> Float[np.ndarray, "strength prompt"]:
        """The metric at every strength: one batch of all, or a run per strength where the dose has no rows."""
        return over_strengths(dose, self.model, self.prompts, self.strengths, self._scores)

    def _scores(self, subject: Subject, rows: Prompts, numbers: list[int]) -> Float[np.ndarray, " row"]:
        """One number per row; ``numbers`` says which prompt each row is."""
        if self.metric in ANSWER:
            return score_continuations(subject, rows, [self.metric], self.work)[self.metric].to_numpy()
        if self.metric in TEXT or self.behaviour is not None:
            assert self.base_replies is not None
            replies = generate_replies(subject, rows, self.decoding, self.work)
            if self.behaviour is not None and self.behaviour.states is not None:
                return state_scores(subject, rows, replies, {self.metric: self.behaviour}, self.work)[
                    self.metric
                ].to_numpy()
            rules = [] if self.behaviour is None else [self.behaviour]
            beside = [self.base_replies[number] for number in numbers]
            return score_texts(replies, beside, rows, [self.metric], self.refusal, rules)[self.metric].to_numpy()
        return next_token_scores(subject, rows, self.metric, self.base_logits, numbers, self.work)


Scorer = Callable[[Subject, Prompts, list[int]], np.ndarray]
"""(subject, rows, which prompt each row is) -> [row, ...]."""


def over_strengths(
    dose: Dose, model: AdaptedModel, prompts: Prompts, strengths: Sequence[int | float], score: Scorer
) -> np.ndarray:
    """``score`` at every strength, [strength, prompt, ...]."""
    numbers = list(range(len(prompts)))
    if dose.rows is None:
        runs = [
            score(Subject(f"strength {strength:g}", model, dose.at(strength)), prompts, numbers)
            for strength in strengths
        ]
        return np.stack(runs)
    make, of_row = dose.rows, [strength for _ in prompts for strength in strengths]
    many = Prompts([row for row in prompts for _ in strengths])
    subject = Subject("strengths", model, per_row=lambda rows: make([of_row[row] for row in rows]))
    scores = score(subject, many, [number for number in numbers for _ in strengths])
    return scores.reshape(len(prompts), len(strengths), *scores.shape[1:]).swapaxes(0, 1)


def next_token_scores(
    subject: Subject, rows: Prompts, metric: str, reference: HeldLogits | None, numbers: Sequence[int], work: Work
) -> Float[np.ndarray, " row"]:
    """A metric of the next token, scored batch by batch; ``reference`` [prompt, vocab] is what ``kl`` compares with."""
    ids = encode(rows, subject.model.tokenizer, subject.model.max_positions)
    values = np.zeros(len(rows))

    def take(numbers_taken: list[int], logits: Tensor) -> None:
        base = None if reference is None else reference[[numbers[row] for row in numbers_taken]]
        scores = score_answers(logits, rows[numbers_taken], subject.model.tokenizer, [metric], base)
        values[numbers_taken] = scores[metric].to_numpy()

    last_logits(subject, ids, take, work)
    return values


def text_scores(subject: Subject, rows: Prompts, work: Work) -> Float[np.ndarray, "row two"]:
    """Log-probability and number of tokens of neutral texts."""
    own = text_logprobs(subject, rows, work)
    return np.stack([own.sum_, own.tokens], axis=1)
