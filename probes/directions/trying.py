"""One candidate tried on a part of the prompts: the behaviour, and what else it moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from probes.directions.contrasting import Directions
from probes.directions.material import Part, Reading, answers_under, read_answers
from workbench.behaviour.continuations import KLFromModels, text_logprobs
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Int, Tensor


@dataclass(frozen=True)
class Candidate:
    """Which layers, where the direction was read, where the recipe acts, and how strongly."""

    layers: tuple[int, ...]
    role: str
    positions: str
    strength: float = 1.0

    def line(self) -> dict[str, Any]:
        """For a table."""
        first, last = self.layers[0], self.layers[-1]
        shown = f"L{first}" if first == last else f"L{first}-L{last}"
        return {"layer": first, "layers": shown, "role": self.role, "positions": self.positions,
                "strength": self.strength}  # fmt: skip

    def ablation(self, directions: Directions) -> Any:
        """The recipe: each layer's coordinate set to the other class's mean there."""
        from interventions import ConceptAblation, Recipe

        role = directions.roles.index(self.role)
        return Recipe([
            ConceptAblation(layer, directions.unit[role, layer], mean=directions.other[role, layer],
                            strength=self.strength, positions=self.positions)
            for layer in self.layers
        ])  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a model (under a recipe) does, prompt by prompt."""

    shows: Reading
    """Of the class in which the tuned model shows the behaviour."""
    other: Reading
    kl_tuned: Float[np.ndarray, " row"]
    """KL(tuned || this) per token of the tuned model's own answers to the OTHER prompts, in nats."""
    kl_base: Float[np.ndarray, " row"]
    perplexity: float = math.nan
    """Of neutral texts; NaN without any."""

    def rise(self, own: Outcome) -> float:
        """By which share the perplexity of neutral texts is above that of ``own``; 0 without such texts."""
        return 0.0 if math.isnan(self.perplexity) else self.perplexity / own.perplexity - 1.0

    def cost(self, base: Outcome) -> float:
        """What is minimised in choosing: the behaviour, and what else moved: nats per token on the other prompts, how
        much more answers repeat than the base's, and half the share that lost its question's subject."""
        behaviour = float(self.shows.behaviour.mean())
        moved = float(self.kl_tuned.mean())
        repeats = max(0.0, float(self.shows.repetition.mean() - base.shows.repetition.mean()))
        subject = max(0.0, float(base.shows.subject.mean() - self.shows.subject.mean()))
        return behaviour + moved + repeats + 0.5 * subject


def cheapest(tried: Sequence[tuple[Candidate, Outcome]], own: Mapping[str, Outcome], allowed_rise: float) -> Candidate:
    """Of the candidates that turn the behaviour off, the one of least cost among those that raise the perplexity of
    neutral texts by ``allowed_rise`` at most; where none does, the one of least cost and rise beyond it together.

    A candidate turns the behaviour off where it takes away half or more of what the best one takes away: a recipe that
    does nothing raises nothing.

    Args:
        tried: Candidates with what they did.
        own: What base and tuned model do as they are.
        allowed_rise: Share of the tuned model's perplexity.
    """
    left = [float(outcome.shows.behaviour.mean()) for _, outcome in tried]
    most = min(left) + 0.5 * max(0.0, float(own["tuned"].shows.behaviour.mean()) - min(left))
    working = [attempt for attempt, rest in zip(tried, left, strict=True) if rest <= most]
    within = [attempt for attempt in working if attempt[1].rise(own["tuned"]) <= allowed_rise]

    def price(trial: tuple[Candidate, Outcome]) -> float:
        beyond = max(0.0, trial[1].rise(own["tuned"]) - allowed_rise)
        return trial[1].cost(own["base"]) + (0.0 if within else beyond)

    return min(within or working, key=price)[0]


class Trier:
    """Tries recipes on one part; the models' own answers there are known."""

    def __init__(
        self,
        pair: ModelPair,
        part: Part,
        behaviour: Behaviour,
        max_new_tokens: int,
        work: Work,
        neutral: Prompts | None = None,
    ) -> None:
        """``neutral``: texts whose perplexity is read too."""
        self._neutral = neutral
        self.pair, self.part, self.behaviour = pair, part, behaviour
        self.max_new_tokens, self.work = max_new_tokens, work
        self._shows, self._other = part.of(shows=True), part.of(shows=False)
        self._own: dict[str, Outcome] = {}

    def own(self, role: str) -> Outcome:
        """Base or tuned model as it is; their answers are known."""
        if role not in self._own:
            self._own[role] = self._as_it_is(role)
        return self._own[role]

    def _as_it_is(self, role: str) -> Outcome:
        replies = self.part.answers[role]
        both = [
            read_answers(self.part, rows, [replies[int(row)] for row in rows], self.behaviour)
            for rows in (self._shows, self._other)
        ]
        subject = Subject(role, self.pair.models[role])
        return Outcome(both[0], both[1], *self._kl(subject), self._perplexity(subject))

    def under(self, recipe: AppliedRecipe, on: str = "tuned") -> Outcome:
        """One side of the pair under a recipe."""
        subject = self._subject(recipe, on)
        rows = np.concatenate([self._shows, self._other])  # in one batch: a step of decoding costs what its weights do
        replies = answers_under(self.part, rows, subject, self.max_new_tokens, self.work)
        n = len(self._shows)
        both = [
            read_answers(self.part, *half, self.behaviour)
            for half in ((self._shows, replies[:n]), (self._other, replies[n:]))
        ]
        return Outcome(both[0], both[1], *self._kl(subject), self._perplexity(subject))

    def shows_under(self, recipe: AppliedRecipe, on: str = "tuned") -> Reading:
        """What :meth:`under` says of the class that shows the behaviour, at a third of the cost or less."""
        return self._read(self._subject(recipe, on), self._shows)

    def _subject(self, recipe: AppliedRecipe, on: str) -> Subject:
        return Subject(f"{on} under a recipe", self.pair.models[on], recipe)

    def _read(self, subject: Subject, rows: Int[np.ndarray, " row"]) -> Reading:
        replies = answers_under(self.part, rows, subject, self.max_new_tokens, self.work)
        return read_answers(self.part, rows, replies, self.behaviour)

    def _perplexity(self, subject: Subject) -> float:
        if not self._neutral:
            return math.nan
        texts = text_logprobs(subject, self._neutral, self.work)
        return float(np.exp(-texts.sum_.sum() / texts.tokens.sum()))

    def _kl(self, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
        tuned, base = self._from_models.of(subject)
        return tuned, base

    @cached_property
    def _from_models(self) -> KLFromModels:
        rows = self._other.tolist()
        texts = [list(self.part.answers["tuned"][row].ids) for row in rows]
        plain = [Subject(role, self.pair.models[role]) for role in ("tuned", "base")]
        return KLFromModels(plain, [self.part.ids[row] for row in rows], texts, self.work)


def push(vector: Tensor, layer: int, strength: float, positions: str) -> Any:
    """The recipe that makes a model show the behaviour: the contrast added at one layer."""
    from interventions import Offset, Recipe

    return Recipe([Offset(layer, vector.to(torch.float32), strength=strength, positions=positions)])
