"""Greedy texts at any strength along any of several directions, all of them in shared batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import interventions as iv
from workbench.behaviour.continuations import logprobs
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor


class Turned(NamedTuple):
    """One text: which prompt, along which direction, how strongly."""

    row: int
    direction: int
    strength: float


@dataclass(frozen=True)
class DialTexts:
    """Writes texts with an offset at ``layer`` along one of ``vectors`` [direction, d_model]."""

    model: AdaptedModel
    layer: int
    vectors: Sequence[Float[Tensor, " d_model"]]
    max_new_tokens: int
    work: Work

    def replies(self, rows: Prompts, texts: Sequence[Turned]) -> list[Reply]:
        """The greedy reply of each text; settings and prompts share batches, as every row has its own strength."""

        def of_batch(numbers: list[int]) -> iv.Recipe:
            return self._recipe([texts[number] for number in numbers])

        members = Prompts([rows[text.row] for text in texts])
        subject = Subject("dial", self.model, per_row=of_batch)
        written = generate_replies(subject, members, Decoding(self.max_new_tokens), self.work)
        return [replies[0] for replies in written]

    def perplexities(self, rows: Prompts, replies: Sequence[Sequence[Reply]]) -> list[float]:
        """Perplexity under the plain model of each list of replies, one reply per prompt."""
        ids = encode(rows, self.model.tokenizer, self.model.max_positions)
        flat = [reply.ids for texts in replies for reply in texts]
        totals = logprobs(Subject("plain", self.model), ids * len(replies), flat, self.work)
        sums, tokens = (value.reshape(len(replies), -1).sum(1) for value in (totals.sum_, totals.tokens))
        return [float(mean) for mean in np.exp(-sums / tokens)]

    def _recipe(self, texts: Sequence[Turned]) -> iv.Recipe:
        numbers = sorted({text.direction for text in texts if text.strength})
        return iv.Recipe([
            iv.Offset(
                self.layer, self.vectors[number], positions="last+generated",
                strength=[text.strength if text.direction == number else 0.0 for text in texts],
            )
            for number in numbers
        ])  # fmt: skip


def control_texts(rows: int, directions: int, ends: Sequence[float]) -> list[Turned]:
    """Every prompt under two random directions at each end, or under more where that takes to use all directions.

    Directions are numbered from 1; the list goes prompt by prompt, direction by direction, end by end.
    """
    share = min(directions, max(2, -(-directions // rows)))
    return [
        Turned(row, 1 + (row * share + place) % directions, end)
        for row in range(rows)
        for place in range(share)
        for end in ends
    ]
