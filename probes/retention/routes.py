"""Ways to ask a question again: behind examples, in a code, under a prompt of a bank, behind a soft prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from interventions.training.soft_prompt import train_soft_prompt
from interventions.training.trainer import Schedule
from probes.effects.answers import Measure, answer_scores
from probes.effects.rewriting import retexted, text_of, with_demonstrations
from probes.halves import in_first_half
from probes.retention.codes import CODES
from workbench.behaviour.scores import next_token_logits
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts

BANK = (
    "{question}\nThink step by step, then answer.",
    "Please answer the following question.\n{question}",
    "You are an expert. {question}",
    "Question: {question}\nAnswer:",
)
PLAIN = "plain"


def routed(rows: Prompts, bank: Sequence[str], codes: Sequence[str], shots: int, seed: int) -> dict[str, Prompts]:
    """Route -> the rows asked that way, the plain ones first.

    Raises:
        UserError: An unknown code, or a template of the bank without a place for the question.
    """
    for template in bank:
        if "{question}" not in template:
            raise UserError(f"The bank's {template!r} has no place for the question: write {{question}} where it goes.")
    for name in codes:
        if name not in CODES:
            raise unknown_name("code", name, CODES)
    routes = {PLAIN: rows}
    if shots:
        routes[f"{shots} examples"] = with_demonstrations(rows, rows, shots, seed)
    for number, template in enumerate(bank):
        routes[f"bank {number}"] = Prompts([
            retexted(row, template.replace("{question}", text_of(row))) for row in rows
        ])  # fmt: skip
    for name in codes:
        there = CODES[name].there
        routes[name] = Prompts([_coded(row, there) for row in rows])
    return routes


def _coded(row: Any, there: Any) -> Any:
    made = retexted(row, there(text_of(row)))
    answers = {name: there(text) if (text := getattr(row, name)) else text for name in ("answer", "distractor")}
    return dataclasses.replace(made, **answers)


def route_scores(
    model: AdaptedModel, routes: dict[str, Prompts], metric: Measure, options: dict[str, Any], bank: Sequence[str]
) -> dict[str, np.ndarray]:
    """Route -> score by prompt; with a bank of two or more also the dynamic choice, which takes for each prompt the
    template under which the model is surest of its next word."""
    scores = {name: _score(model, name, rows, routes[PLAIN], metric, options) for name, rows in routes.items()}
    names = [f"bank {number}" for number in range(len(bank))]
    if len(names) > 1:
        batch_size = options["batch_size"]
        sure = np.stack([
            next_token_logits(model, routes[name], batch_size=batch_size).softmax(-1).amax(-1).numpy() for name in names
        ])  # fmt: skip
        scores["bank, chosen by certainty"] = np.stack([scores[name] for name in names])[
            sure.argmax(0), np.arange(sure.shape[1])
        ]
    return scores


def _score(
    model: AdaptedModel, name: str, rows: Prompts, plain: Prompts, metric: Measure, options: dict[str, Any]
) -> np.ndarray:
    """A coded question counts as answered in code or in plain words."""
    own = answer_scores(model, rows, metric, **options)
    if name not in CODES:
        return own
    pairs = zip(rows, plain, strict=True)
    as_before = Prompts([
        dataclasses.replace(row, answer=other.answer, distractor=other.distractor) for row, other in pairs
    ])  # fmt: skip
    return np.maximum(own, answer_scores(model, as_before, metric, **options))


def soft_scores(
    model: AdaptedModel, rows: Prompts, tokens: int, metric: Measure, options: dict[str, Any], seed: int
) -> np.ndarray:
    """Score by prompt behind a soft prompt that was trained on the other half of the prompts."""
    inside = in_first_half(rows, seed)
    scores = np.zeros(len(rows))
    for train, test in ((inside, ~inside), (~inside, inside)):
        soft = train_soft_prompt(model, rows[train], tokens=tokens, also_read=[rows[test]],
                                 schedule=Schedule(epochs=8, seed=seed))  # fmt: skip
        read = soft.before(rows[test], model.tokenizer)
        scores[test] = answer_scores(model, read, metric, recipe=soft, **options)
    return scores
