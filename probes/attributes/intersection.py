"""Several attributes at once: where their clouds of texts meet, and how many a text satisfies (distributional lens)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from probes.attributes.text_states import text_states
from probes.halves import halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Bool, Float, Tensor

NEIGHBOURS = 8
"""Texts of each attribute that are averaged at a time."""
ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class AttributeIntersection(ProbeResult):
    """How often texts satisfy several attributes at once.

    ``table``: wanted (attributes joined by +), number, how (intersection, centres: the mean of the attributes' centres,
    sum: of their offsets, plain); ``score``, the share of texts that satisfy all of them, with interval; ``control``,
    the share under a random direction of the same norm; ``q`` of the difference.
    """

    interference: pd.DataFrame
    """steered (one attribute), measured, change of the share of texts that satisfy the measured one."""
    layer: int
    targets: dict[str, Any]
    """``a+b/how`` -> offset [d_model]."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Attributes together"
    unit: ClassVar[str] = "share of texts that satisfy all"

    def recipe(self, wanted: Sequence[str], how: str = "intersection") -> iv.Recipe:
        """The offset to some attributes at once.

        Raises:
            UserError: These attributes were not tried together.
        """
        key = f"{'+'.join(wanted)}/{how}"
        if key not in self.targets:
            raise UserError(f"{key!r} was not tried; these were: {', '.join(self.targets)}.")
        return iv.Recipe([iv.Offset(self.layer, self.targets[key], positions="last+generated")])

    def figure(self) -> go.Figure:
        """Satisfaction against the number of attributes."""
        means = self.table.groupby(["how", "number"])["score"].mean().reset_index()
        drawn = go.Figure([
            go.Scatter(x=part["number"], y=part["score"], name=str(name), mode="lines+markers")
            for name, part in means.groupby("how", sort=False)
        ])  # fmt: skip
        drawn.update_layout(title=self.title, xaxis_title="attributes at once", yaxis_title=self.unit)
        return drawn

    def summary(self) -> str:
        """All attributes together, by each way."""
        top = self.table[self.table["number"] == self.table["number"].max()]
        said = ", ".join(f"{row.how} {row.score:.0%} [{row.low:.0%}, {row.high:.0%}]" for row in top.itertuples())
        return (
            f"{top['wanted'].iloc[0]}: {said}, random direction {top['control'].mean():.0%}; intervals over "
            f"{self.resampled}; control: {self.control}"
        )


@method(
    "attribute-intersection",
    group="attributes",
    question="Can texts have several attributes at once, and does aiming at where their clouds meet help?",
    papers=(
        "A Distributional Lens for Multi-Aspect Controllable Text Generation",
        "UltraGen: Extremely Fine-grained Controllable Generation via Attribute Reconstruction and Global Preference "
        "Optimization",
    ),
    cost="samples of every prompt, then one generation per set of attributes and way",
    example="--attributes punctuation,pronouns --samples 4 --max-new-tokens 8",
)
def attribute_intersection(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    attributes: list[str],
    *,
    layer: int | float | str = 0.5,
    strength: float = 1.0,
    samples: int = 6,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttributeIntersection:
    """Sample texts, and steer to the point where the clouds of their attributes meet.

    A text satisfies an attribute where it scores above the median of the samples. The cloud of an attribute are the
    mean states of the texts that satisfy it; the intersection is searched as the distributional lens does: from texts
    that satisfy all, or the centres, the nearest texts of every cloud are averaged in equal parts, again and again. The
    offset leads there from the mean of all samples. It is compared with the mean of the clouds' centres, which is
    pulled to the larger and denser ones, and with the sum of single offsets.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: What the texts answer.
        attributes: Two or more attributes or behaviours of a text.
        layer: Where states are read and the offset acts: an index, or a fraction of the depth.
        strength: Of the offset; 1 leads from the mean to the point.
        samples: Sampled texts per prompt.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of halves, samples and resampling.

    Returns:
        An :class:`AttributeIntersection`.

    Raises:
        UserError: Fewer than two attributes, or one that no sample or every sample satisfies.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if len(set(attributes)) < 2:
        raise UserError("Attributes are joined here: give two or more.")
    if samples < 1:
        raise UserError("Give samples of 1 or more: the clouds are made of them.")
    (place,) = resolve_layers(layer, model.n_layers)
    rules = [read_behaviour(attribute) for attribute in attributes]
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    choosing, reported = halves(rows, seed)
    with counted(model) as passes:
        clouds = _Clouds(model, choosing, rules, place, Decoding(max_new_tokens, samples, seed=seed), work)
        trial = _Trial(model, reported, rules, clouds.medians, max_new_tokens, work, place)
        plain = trial.satisfied(None)
        lines, targets, singles = [], {}, {}
        for number in range(1, len(attributes) + 1):
            for combination in itertools.combinations(range(len(attributes)), number):
                wanted = "+".join(attributes[index] for index in combination)
                points = clouds.targets(combination)
                random = trial.satisfied(strength * _random_like(points["intersection"], seed + number))
                for how, offset in points.items():
                    satisfied = trial.satisfied(strength * offset)
                    if number == 1:
                        singles[combination[0]] = satisfied
                    targets[f"{wanted}/{how}"] = strength * offset
                    lines.append(_line(wanted, combination, how, (satisfied, random), reported, seed))
                lines.append(_line(wanted, combination, "plain", (plain, random), reported, seed))
    return AttributeIntersection(
        table=with_q(lines),
        control="a random direction of the same norm",
        provenance=Provenance.of("attribute_intersection", model, rows, seed=seed, forward_passes=passes.forward),
        interference=_interference(attributes, singles, plain), layer=place, targets=targets,
        resampled=units_of(reported.clusters),
    )  # fmt: skip


class _Clouds:
    """Mean states of sampled texts, and which attributes each satisfies."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, rules: Sequence[Behaviour], layer: int, decoding: Decoding, work: Work
    ) -> None:
        drawn = generate_replies(Subject("samples", model), rows, decoding, work)
        pairs = [(row, reply) for row, replies in zip(rows, drawn, strict=True) for reply in replies[1:]]
        ids = encode(rows, model.tokenizer, model.max_positions)
        before = [own for own, replies in zip(ids, drawn, strict=True) for _ in replies[1:]]
        values = np.array([[rule(text.text, row) for rule in rules] for row, text in pairs])
        self.medians = np.median(values, axis=0)
        self.has: Bool[np.ndarray, "text attribute"] = values > self.medians
        for rule, own in zip(rules, self.has.T, strict=True):
            if own.all() or not own.any():
                raise UserError(f"{rule.name!r} is the same in nearly all samples: give more samples or other prompts.")
        self.states = text_states(model, before, [list(text.ids) for _, text in pairs], [layer], work.batch_size)[:, 0]

    def targets(self, wanted: Sequence[int]) -> dict[str, Float[Tensor, " d_model"]]:
        """Offsets from the mean of all texts, by each way."""
        mean = self.states.mean(0)
        clouds = [self.states[torch.from_numpy(self.has[:, place])] for place in wanted]
        centres = [cloud.mean(0) for cloud in clouds]
        targets = {"intersection": meeting_point(clouds) - mean}
        if len(wanted) > 1:
            targets["centres"] = torch.stack(centres).mean(0) - mean
            targets["sum"] = torch.stack([centre - mean for centre in centres]).sum(0)
        return targets


def meeting_point(clouds: Sequence[Float[Tensor, "_ d_model"]]) -> Float[Tensor, " d_model"]:
    """The point whose nearest texts of every cloud, in equal parts, lie around it most closely.

    From every cloud's centre and from their mean: the mean of the nearest texts of each cloud, until it stays; of the
    points so found, that of the least greatest distance to a cloud.
    """
    starts = [cloud.mean(0) for cloud in clouds]
    starts.append(torch.stack(starts).mean(0))
    points = []
    for point in starts:
        for _ in range(ROUNDS):
            near = [_nearest(cloud, point) for cloud in clouds]
            new = torch.stack([states.mean(0) for states in near]).mean(0)
            if torch.allclose(new, point):
                break
            point = new
        worst = max(float((_nearest(cloud, point) - point).norm(dim=-1).mean()) for cloud in clouds)
        points.append((worst, point))
    return min(points, key=lambda entry: entry[0])[1]


def _nearest(cloud: Tensor, point: Tensor) -> Tensor:
    distance = (cloud - point).norm(dim=-1)
    return cloud[distance.argsort(stable=True)[:NEIGHBOURS]]


def _random_like(vector: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    return drawn * (vector.norm() / drawn.norm())


class _Trial:
    """Greedy texts under an offset: which attributes each satisfies."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, rules: Sequence[Behaviour], medians: np.ndarray, new: int, work: Work,
        layer: int,
    ) -> None:  # fmt: skip
        self.model, self.rows, self.rules, self.medians = model, rows, rules, medians
        self.new, self.work, self.layer = new, work, layer

    def satisfied(self, offset: Tensor | None) -> Bool[np.ndarray, "prompt attribute"]:
        recipe = None
        if offset is not None:
            recipe = iv.Recipe([iv.Offset(self.layer, offset, positions="last+generated")])
        replies = generate_replies(Subject("steered", self.model, recipe), self.rows, Decoding(self.new), self.work)
        values = [
            [rule(reply[0].text, row) for rule in self.rules] for row, reply in zip(self.rows, replies, strict=True)
        ]
        return np.array(values) > self.medians


def _line(
    wanted: str, combination: Sequence[int], how: str, both: tuple[np.ndarray, np.ndarray], rows: Prompts, seed: int
) -> dict[str, Any]:
    own, random = (hits[:, list(combination)].all(1).astype(float) for hits in both)
    line = beside_control(own, random, rows.clusters, seed=seed, share=True)
    return {"how": how, "wanted": wanted, "number": len(combination), **line}


def _interference(attributes: Sequence[str], singles: dict[int, np.ndarray], plain: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame([
        {"steered": attributes[steered], "measured": attributes[measured],
         "change": float(satisfied[:, measured].mean() - plain[:, measured].mean())}
        for steered, satisfied in singles.items() for measured in range(len(attributes))
    ])  # fmt: skip
