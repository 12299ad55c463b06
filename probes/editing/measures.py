"""What an edited model is measured by: facts, other wordings, unrelated replies, other tasks, and plain text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interventions.training.editing import own_replies, written_right
from interventions.training.examples import IGNORED, Collator, Example, answer_log_probs, examples_of
from interventions.training.trainer import answer_logits
from probes.scored import paired_p, scored_share
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float

MEASURES = ("reliability", "paraphrase", "locality", "general")
"""Those that count for a site's score, each as much as the others."""
_BATCH = 32


@dataclass(frozen=True)
class EditMeasures:
    """Rows of every measure as token ids; ``locality`` holds the unedited model's own replies."""

    facts: list[Example]
    dealt: list[Example]
    """Each fact with another fact's answer: the control of paraphrases."""
    answered: dict[str, list[Example]]
    neutral: list[Example]
    clusters: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, model: AdaptedModel, rows: dict[str, Prompts | None], neutral: Prompts | None, locality_tokens: int
    ) -> EditMeasures:
        """``rows`` by measure, None where it is not measured. Raises :class:`UserError` for rows without answers."""
        if locality_tokens < 1:
            raise UserError(f"locality_tokens is {locality_tokens}: give 1 or more tokens of each reply to compare.")
        present = {name: prompts for name, prompts in rows.items() if prompts is not None}
        answered = {
            name: examples_of(prompts, model.tokenizer)
            if name != "locality"
            else own_replies(model, prompts, locality_tokens)
            for name, prompts in present.items()
        }
        facts = answered["reliability"]
        texts = [] if neutral is None else _texts(model, neutral)
        clusters = {name: prompts.clusters for name, prompts in present.items()}
        return cls(facts, _dealt(facts), answered, texts, clusters)

    def take(self, model: AdaptedModel) -> dict[str, Float[np.ndarray, " prompt"]]:
        """Measure -> 1 where every token of the row is the model's first choice, prompt by prompt."""
        return {name: written_right(model, examples).astype(float) for name, examples in self.answered.items()}

    def perplexity(self, model: AdaptedModel) -> float:
        """Of the neutral texts, over all their tokens but the first of each; NaN without texts."""
        collate, nats, tokens = Collator(pad_id(model.tokenizer)), 0.0, 0
        for start in range(0, len(self.neutral), _BATCH):
            batch = collate(self.neutral[start : start + _BATCH])
            with model.active(), torch.no_grad():
                logits = answer_logits(model, batch["input_ids"], batch["attention_mask"])
                nats -= float(answer_log_probs(logits, batch["labels"].to(logits.device)).sum())
            tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
        return math.exp(nats / tokens) if tokens else math.nan

    def row(self, edited: dict[str, np.ndarray], before: dict[str, np.ndarray], seed: int) -> dict[str, float]:
        """Score, interval, control and p of one edit, and the mean of each measure.

        Every measure counts the same: its prompts have weights that add up to their number over the measures.
        """
        names = [name for name in MEASURES if name in before]
        sizes = {name: len(before[name]) for name in names}
        weight = {name: sum(sizes.values()) / len(names) / sizes[name] for name in names}
        apart = np.concatenate([(edited[name] - before[name]) * weight[name] for name in names])
        means = {name: float(edited[name].mean()) if name in names else math.nan for name in MEASURES}
        score = mean_of(edited)
        each = [scored_share(edited[name], seed=seed, clusters=self.clusters[name]) for name in names]
        below = np.sqrt(sum((part["score"] - part["low"]) ** 2 for part in each)) / len(names)
        above = np.sqrt(sum((part["high"] - part["score"]) ** 2 for part in each)) / len(names)
        return {
            "score": score,
            "low": float(max(0.0, score - below)),
            "high": float(min(1.0, score + above)),
            "control": mean_of(before),
            "p": paired_p(apart, _joined(self.clusters, names), seed=seed),
            **means,
            "n": sum(sizes.values()),
        }


def mean_of(taken: dict[str, np.ndarray]) -> float:
    """The mean over measures of their means over prompts."""
    return float(np.mean([values.mean() for values in taken.values()]))


def _texts(model: AdaptedModel, neutral: Prompts) -> list[Example]:
    ids = encode(neutral.turned(chat=False), model.tokenizer, model.max_positions)
    if short := [number for number, text in enumerate(ids) if len(text) < 2]:
        raise UserError(f"Neutral text {short[0]} has one token; perplexity needs at least two: remove it.")
    return [Example(text[:1], text[1:]) for text in ids]


def _dealt(examples: list[Example]) -> list[Example]:
    """Each fact with the answer of the next one whose answer differs."""
    answers = [example.answer for example in examples]
    dealt = []
    for place, example in enumerate(examples):
        others = [*answers[place + 1 :], *answers[:place]]
        answer = next((other for other in others if other != example.answer), example.answer)
        dealt.append(Example(example.prompt, answer))
    return dealt


def _joined(clusters: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Clusters of several sets of prompts, numbered apart."""
    numbered: list[np.ndarray] = []
    start = 0
    for name in names:
        numbers = np.unique(clusters[name], return_inverse=True)[1]
        numbered.append(numbers + start)
        start += int(numbers.max()) + 1
    return np.concatenate(numbered)


def prompts_or_none(rows: Any) -> Prompts | None:
    """``rows`` as prompts, where there are any."""
    return None if rows is None else Prompts.of(rows)
