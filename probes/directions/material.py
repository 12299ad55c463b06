"""What a search reads: questions in two classes, parted for choosing and for reporting, with both models' answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.behaviour.text_quality import words_in
from workbench.behaviour.texts import repetition
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.prompts.row import Prompt
from workbench.typing import Bool, Float, Int

FEWEST = 4
"""Prompts of each class that each part needs at least."""
COMMON = 0.25
"""A word that more than this share of the questions hold says nothing of a question's subject."""


@dataclass(frozen=True)
class Part:
    """Prompts of one part; ``shows`` [prompt]: those of the class in which the tuned model shows the behaviour."""

    prompts: Prompts
    shows: Bool[np.ndarray, " prompt"]
    ids: list[list[int]]
    answers: dict[str, list[Reply]]
    """Greedy answers of ``base`` and ``tuned``."""

    @cached_property
    def subjects(self) -> list[frozenset[str]]:
        """The words of each question that few other questions hold."""
        words_of = [set(words_in(_question(row))) for row in self.prompts]
        often = Counter(word for words in words_of for word in words)
        limit = max(1.0, COMMON * len(words_of))
        return [frozenset(word for word in words if often[word] <= limit) or frozenset(words) for words in words_of]

    def of(self, *, shows: bool) -> Int[np.ndarray, " row"]:
        """Row numbers of one of the two classes."""
        return np.flatnonzero(self.shows == shows)


@dataclass(frozen=True)
class Reading:
    """What the answers of one model are like, prompt by prompt."""

    behaviour: Float[np.ndarray, " row"]
    repetition: Float[np.ndarray, " row"]
    subject: Float[np.ndarray, " row"]
    """1 where the answer holds a word of its question's subject."""


def read_answers(part: Part, rows: Int[np.ndarray, " row"], replies: list[Reply], behaviour: Behaviour) -> Reading:
    """The behaviour and the quality of ``replies`` to ``rows`` of a part."""
    prompts = [part.prompts[int(row)] for row in rows]
    scores = [behaviour(reply.text, row) for reply, row in zip(replies, prompts, strict=True)]
    speaks = [bool(part.subjects[int(row)] & _stems(reply.text)) for reply, row in zip(replies, rows, strict=True)]
    return Reading(
        np.array(scores), np.array([repetition(reply.content) for reply in replies]), np.array(speaks, float)
    )


def answers_under(
    part: Part, rows: Int[np.ndarray, " row"], subject: Subject, max_new_tokens: int, work: Work
) -> list[Reply]:
    """Greedy answers to some rows."""
    replies = generate_replies(subject, part.prompts[rows], Decoding(max_new_tokens), work)
    return [reply[0] for reply in replies]


def parts_of(
    pair: ModelPair, prompts: Prompts, behaviour: Behaviour, *, limit: int, max_new_tokens: int, seed: int, work: Work
) -> tuple[Part, Part]:
    """The part to choose by and the part to report on: whole groups, at most ``limit`` prompts of each class.

    Classes are the prompts' labels where all rows have one of two; else whether the tuned model's own answer shows the
    behaviour. Raises :class:`UserError` where a class is too small, or the tuned model shows no more of the behaviour
    in one class than in the other.
    """
    labels = [row.label for row in prompts]
    labelled = all(label is not None for label in labels)
    if labelled and len(set(labels)) != 2:
        names = ", ".join(sorted(map(str, set(labels))))
        raise UserError(f"The prompts have {len(set(labels))} labels ({names}); give rows of two classes, or none.")
    halves = _halves(prompts, labels if labelled else None, limit, seed)
    answered = []
    for rows in halves:
        prompts_there = prompts[rows]
        ids = encode(prompts_there, pair.tokenizer, pair.tuned.max_positions)
        answers = {
            role: [
                reply[0]
                for reply in generate_replies(Subject(role, model), prompts_there, Decoding(max_new_tokens), work)
            ]
            for role, model in pair.models.items()
        }
        answered.append((prompts_there, ids, answers))
    scores = [
        np.array([behaviour(answer.text, row) for answer, row in zip(answers["tuned"], prompts_there, strict=True)])
        for prompts_there, _, answers in answered
    ]
    shows = _classes([prompts_there for prompts_there, _, _ in answered], scores, labelled=labelled)
    parts = [
        Part(prompts_there, shown, ids, answers)
        for (prompts_there, ids, answers), shown in zip(answered, shows, strict=True)
    ]
    _check(parts, behaviour)
    return parts[0], parts[1]


def _halves(prompts: Prompts, labels: list[Any] | None, limit: int, seed: int) -> list[np.ndarray]:
    """Row numbers of both parts: groups are shuffled and dealt out in turn, label by label."""
    rng, clusters = np.random.default_rng(seed), prompts.clusters
    parts: list[list[int]] = [[], []]
    taken = Counter[tuple[int, Any]]()
    side: dict[int, int] = {}
    names = [None] * len(prompts) if labels is None else labels
    room = limit if labels is not None else 2 * limit
    for label in dict.fromkeys(names):
        own = np.unique(clusters[[name == label for name in names]])
        for number, cluster in enumerate(rng.permutation(own).tolist()):
            side.setdefault(cluster, number % 2)
    for row in rng.permutation(len(prompts)).tolist():
        key = (side[int(clusters[row])], names[row])
        if taken[key] < room:
            taken[key] += 1
            parts[key[0]].append(row)
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def _classes(parts: list[Prompts], scores: list[np.ndarray], *, labelled: bool) -> list[np.ndarray]:
    if not labelled:
        return [score > 0.5 for score in scores]
    labels = [np.array([str(row.label) for row in part]) for part in parts]
    names = np.unique(np.concatenate(labels))
    means = [
        np.concatenate([score[own == name] for score, own in zip(scores, labels, strict=True)]).mean() for name in names
    ]
    return [own == names[int(np.argmax(means))] for own in labels]


def _check(parts: list[Part], behaviour: Behaviour) -> None:
    for part in parts:
        few = int(min(part.shows.sum(), (~part.shows).sum()))
        if few < FEWEST:
            raise UserError(
                f"{few} of {len(part.shows)} prompts are of one class (where the tuned model shows {behaviour.name!r}, "
                f"or where it does not), and each part needs {FEWEST}: give more prompts of both."
            )
    part = parts[0]
    rates = [
        read_answers(part, part.of(shows=shows), [part.answers[role][int(n)] for n in part.of(shows=shows)], behaviour)
        .behaviour.mean()
        for role, shows in (("tuned", True), ("tuned", False), ("base", True))
    ]  # fmt: skip
    if rates[0] - rates[1] <= 0.1 or rates[0] - rates[2] <= 0.1:
        raise UserError(
            f"Nothing to find: {behaviour.name!r} scores {rates[0]:.2g} in the tuned model's answers to one class, "
            f"{rates[1]:.2g} to the other, and {rates[2]:.2g} in the base's; give prompts on which they differ."
        )


def _question(row: Prompt) -> str:
    if row.messages is None:
        return str(row)
    return " ".join(str(turn["content"]) for turn in row.messages if turn["role"] == "user")


def _stems(text: str) -> set[str]:
    """Words, and each without a plural's ending."""
    words = words_in(text)
    return {*words, *(word.removesuffix("s") for word in words), *(word.removesuffix("es") for word in words)}


__all__ = ["AppliedRecipe", "Part", "Reading", "answers_under", "parts_of", "read_answers"]
