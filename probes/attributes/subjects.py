"""An attribute given to one subject of a sentence: an offset at the subject's tokens, and what leaks to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from probes.halves import halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.engine.dispatch import layer_readers, on_the_cpu
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.controls import random_directions
from workbench.typing import Float, Tensor

PLACES = ("subject", "everywhere")
"""Where the offset acts."""


@dataclass(frozen=True, kw_only=True)
class SubjectOffset(ProbeResult):
    """How far an offset gives an attribute to its subject, and how far it leaks.

    ``table``: offset (subject: at the subject's tokens; everywhere), measured (subject, others: the tokens behind it),
    ``score``: the move along the attribute at the last layer, 1 where it is as far as the attribute in words moves it,
    with interval; ``control``, the move under random offsets of the norm; ``words``, what the attribute in words does
    there; ``q`` of the difference from the control. ``others`` beyond ``words`` is leakage.
    """

    strength: float
    layer: int
    vector: Float[Tensor, " d_model"]
    resampled: str = "prompts"

    title: ClassVar[str] = "An attribute for one subject"
    unit: ClassVar[str] = "move along the attribute (1: as in words)"

    def recipe(self, tokens: Sequence[int], strength: float = 1.0) -> iv.Recipe:
        """The offset at tokens with these ids, such as those of a name."""
        where = iv.Where("all", tokens=tuple(tokens))
        return iv.Recipe([iv.Offset(self.layer, self.vector, strength=strength, positions=where)])

    def figure(self) -> go.Figure:
        """Moves at the subject and behind it."""
        drawn = go.Figure([
            go.Bar(x=part["measured"], y=part["score"], name=f"offset: {name}")
            for name, part in self.table.groupby("offset", sort=False)
        ])  # fmt: skip
        drawn.update_layout(title=self.title, barmode="group", yaxis_title=self.unit)
        return drawn

    def summary(self) -> str:
        """Target and leakage of both offsets."""
        said = "; ".join(
            f"{row.offset}, {row.measured} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}] (words {row.words:.2f})"
            for row in self.table.itertuples()
        )
        return f"Offset at L{self.layer}: {said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "subject-offset",
    group="attributes",
    question="Can an attribute be given to one subject without leaking to the others?",
    papers=(
        "Continuous, Subject-Specific Attribute Control in T2I Models by Identifying Semantic Directions",
        "Addressing Attribute Leakages in Diffusion-based Image Editing without Training",
    ),
    needs=Needs(columns=("contrast",)),
    cost="two passes per prompt, then one per place and random offset",
    example="--layer 1",
    any_adapter="whether the offset moves the attribute more than random ones, whatever made it",
)
def subject_offset(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    layer: int | float | str = 0.25,
    strength: float = 1.0,
    controls: int = 10,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001
) -> SubjectOffset:
    """Find an attribute's direction at a subject's tokens from minimal pairs, and add it there or everywhere.

    A row's ``contrast`` is the prompt with the attribute in words, of as many tokens: "a young man and a dog" for
    "a plain man and a dog". The subject are the tokens from the first that differs to the one behind the last that
    does, where the attribute's noun stands. The direction (optimisation-free) is the mean difference of the pairs of
    one half at the subject's last token; the other half is edited, and its states at the last layer say how far
    subject and later tokens moved along the pairs' difference there.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Minimal pairs: prompts with a contrast of the same length in tokens.
        layer: Where the direction is read and added: an index, or a fraction of the depth.
        strength: Of the offset; 1 is the mean difference itself.
        controls: Random offsets.
        seed: Of halves, random offsets and resampling.

    Returns:
        A :class:`SubjectOffset`.

    Raises:
        UserError: A contrast of another length or equal to its prompt, a subject at the very end, or the last layer.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    (place,) = resolve_layers(layer, model.n_layers)
    if place == model.n_layers - 1:
        raise UserError(
            "What moved is read at the last layer, so the offset must act before it: choose an earlier layer."
        )
    rows = Prompts.of(prompts)
    choosing, reported = halves(rows, seed)
    with counted(model) as passes:
        known = [_Pair(model, plain, words, place) for plain, words in _pairs(model, choosing)]
        vector, goal = (torch.stack([getattr(run, name) for run in known]).mean(0) for name in ("early", "late"))
        tested = [_Pair(model, plain, words, place) for plain, words in _pairs(model, reported)]
        random = random_directions(vector, draws=controls, seed=seed)
        moves = {at: np.array([run.moved(vector * strength, at, goal) for run in tested]) for at in PLACES}
        chance = {
            at: np.mean([[run.moved(drawn * strength, at, goal) for run in tested] for drawn in random], axis=0)
            for at in PLACES
        }
        words = np.array([run.by_words(goal) for run in tested])
    return SubjectOffset(
        table=_table(moves, chance, words, reported, seed),
        control=f"{controls} random offsets of the same norm",
        provenance=Provenance.of("subject_offset", model, rows, seed=seed, forward_passes=passes.forward),
        strength=strength, layer=place, vector=vector, resampled=units_of(reported.clusters),
    )  # fmt: skip


def _pairs(model: AdaptedModel, rows: Prompts) -> list[tuple[list[int], list[int]]]:
    """Token ids of every prompt and its contrast."""
    if any(not row.contrast for row in rows):
        raise UserError("Every row needs a contrast: the prompt with the attribute in words.")
    plain = encode(rows, model.tokenizer, model.max_positions)
    words = encode([str(row.contrast) for row in rows], model.tokenizer, model.max_positions)
    for number, (tokens, other) in enumerate(zip(plain, words, strict=True)):
        if len(tokens) != len(other) or tokens == other:
            raise UserError(
                f"The prompt {str(rows[number])!r} has {len(tokens)} tokens and its contrast {len(other)}, or "
                "they are equal: give contrasts of as many tokens that differ at the subject."
            )
    return list(zip(plain, words, strict=True))


class _Pair:
    """One minimal pair: its subject's tokens, and the differences there."""

    def __init__(self, model: AdaptedModel, plain: list[int], words: list[int], layer: int) -> None:
        self.model, self.plain, self.layer = model, plain, layer
        differs = [n for n, (token, other) in enumerate(zip(plain, words, strict=True)) if token != other]
        self.first, self.end = differs[0], min(differs[-1] + 1, len(plain) - 1)
        if self.end + 1 >= len(plain):
            raise UserError("The subject stands at the prompt's very end, where nothing can leak: let the text go on.")
        self.before, self.after = self._read(plain, None), self._read(words, None)
        early = self.after[0] - self.before[0]
        self.early, self.late = early[self.end], (self.after[1] - self.before[1])[self.end]

    def _read(self, ids: list[int], recipe: iv.Recipe | None) -> tuple[Tensor, Tensor]:
        """States [pos, d_model] at the layer and at the last one."""
        states: dict[int, Tensor] = {}
        layers = (self.layer, self.model.n_layers - 1)
        hooks = layer_readers("resid_post", layers, states, on_the_cpu)
        with (recipe or iv.Recipe([])).applied(self.model), self.model.hooked(hooks, stop=True):
            self.model.forward(torch.tensor([ids]), logits=None)
        return states[layers[0]][0], states[layers[1]][0]

    def moved(self, vector: Tensor, at: str, goal: Tensor) -> tuple[float, float]:
        """How far an offset moves the subject's last token and the mean of the tokens behind it along ``goal``."""
        positions = "all" if at == "everywhere" else list(range(self.first, self.end + 1))
        recipe = iv.Recipe([iv.Offset(self.layer, vector, positions=positions)])
        return self._along(self._read(self.plain, recipe)[1], goal)

    def by_words(self, goal: Tensor) -> tuple[float, float]:
        """The same of the attribute in words."""
        return self._along(self.after[1], goal)

    def _along(self, states: Tensor, goal: Tensor) -> tuple[float, float]:
        move = (states - self.before[1]) @ goal / goal.square().sum()
        return float(move[self.end]), float(move[self.end + 1 :].mean())


def _table(
    moves: dict[str, np.ndarray], chance: dict[str, np.ndarray], words: np.ndarray, rows: Prompts, seed: int
) -> pd.DataFrame:
    lines = []
    for at in PLACES:
        for place, measured in enumerate(("subject", "others")):
            own, random = moves[at][:, place], chance[at][:, place]
            lines.append({
                "offset": at, "measured": measured, **beside_control(own, random, rows.clusters, seed=seed),
                "words": words[:, place].mean(),
            })  # fmt: skip
    return with_q(lines)
