"""One candidate tried on a part of the prompts: the behaviour, and what else it moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.directions.contrasting import Directions
from probes.directions.material import Part, Reading, answers_under, read_answers
from workbench.behaviour.continuations import kl_per_token
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.models.pair import ModelPair
from workbench.typing import Float, Tensor


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

    def ablation(self, found: Directions) -> Any:
        """The recipe: each layer's coordinate set to the other class's mean there."""
        from interventions import ConceptAblation, Recipe

        role = found.roles.index(self.role)
        return Recipe([
            ConceptAblation(layer, found.unit[role, layer], mean=found.other[role, layer], strength=self.strength,
                            positions=self.positions)
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

    def cost(self, base: Outcome) -> float:
        """What is minimised in choosing: the behaviour, and what else moved: nats per token on the other prompts, how
        much more answers repeat than the base's, and half the share that lost its question's subject."""
        behaviour = float(self.shows.behaviour.mean())
        moved = float(self.kl_tuned.mean())
        repeats = max(0.0, float(self.shows.repetition.mean() - base.shows.repetition.mean()))
        subject = max(0.0, float(base.shows.subject.mean() - self.shows.subject.mean()))
        return behaviour + moved + repeats + 0.5 * subject


class Trier:
    """Tries recipes on one part; the models' own answers there are known."""

    def __init__(self, pair: ModelPair, part: Part, behaviour: Behaviour, max_new_tokens: int, work: Work) -> None:
        self.pair, self.part, self.behaviour = pair, part, behaviour
        self.max_new_tokens, self.work = max_new_tokens, work
        self._shows, self._other = part.of(shows=True), part.of(shows=False)

    def own(self, role: str) -> Outcome:
        """Base or tuned model as it is; their answers are known."""
        replies = self.part.answers[role]
        both = [
            read_answers(self.part, rows, [replies[int(row)] for row in rows], self.behaviour)
            for rows in (self._shows, self._other)
        ]
        kl = self._kl(Subject(role, self.pair.models[role]))
        return Outcome(both[0], both[1], *kl)

    def under(self, recipe: AppliedRecipe, on: str = "tuned") -> Outcome:
        """One side of the pair under a recipe."""
        subject = Subject(f"{on} under a recipe", self.pair.models[on], recipe)
        both = []
        for rows in (self._shows, self._other):
            replies = answers_under(self.part, rows, subject, self.max_new_tokens, self.work)
            both.append(read_answers(self.part, rows, replies, self.behaviour))
        return Outcome(both[0], both[1], *self._kl(subject))

    def _kl(self, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
        rows = self._other.tolist()
        ids = [self.part.ids[row] for row in rows]
        texts = [list(self.part.answers["tuned"][row].ids) for row in rows]
        found = []
        for role in ("tuned", "base"):
            plain = Subject(role, self.pair.models[role])
            found.append(kl_per_token(plain, [subject], [ids], texts, self.work)[0][:, 0])
        return found[0], found[1]


def push(vector: Tensor, layer: int, strength: float, positions: str) -> Any:
    """The recipe that makes a model show the behaviour: the contrast added at one layer."""
    from interventions import Offset, Recipe

    return Recipe([Offset(layer, vector.to(torch.float32), strength=strength, positions=positions)])
