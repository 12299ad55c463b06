"""Several attributes' directions trained to be orthogonal, with the leakage of each into the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from probes.attributes.text_states import mean_size, text_states
from probes.halves import halves
from probes.replay import counted
from probes.resampling import bootstrap_weights, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode, render
from workbench.stats.controls import random_directions
from workbench.typing import Float, Tensor

STEPS = 200
"""Of the optimiser, which starts at the differences of means."""


@dataclass(frozen=True, kw_only=True)
class AttributeDirections(ProbeResult):
    """Which attributes each attribute's direction moves.

    ``table``: steered, measured; ``score``, the change of the measured attribute's read-out at the last layer (in
    standard deviations over texts) when the steered attribute's direction is added, with interval; ``control``, that
    for random directions of the norm; ``plain``, the same for differences of means without orthogonality; ``q`` of the
    difference from the control. Off the diagonal it is leakage.
    """

    gram: pd.DataFrame
    """first, second, cosine (trained directions), plain (differences of means)."""
    metrics: pd.DataFrame
    """attribute, range: how far its read-out goes from strength -s to +s, with range_low, range_high and range_control
    (the mean size for random directions); disentanglement: share of the squared movement of all read-outs that is its
    own (1: nothing else moves), with its interval and disentanglement_control."""
    readout: pd.DataFrame
    """attribute, accuracy of the read-out on the reported half, control (the commoner class)."""
    layer: int
    attributes: list[str]
    vectors: Float[Tensor, "attribute d_model"]
    """At the layer, each of one mean norm."""
    resampled: str = "texts"

    title: ClassVar[str] = "Directions of attributes"
    unit: ClassVar[str] = "change of the read-out (standard deviations)"

    def recipe(self, **strengths: float) -> iv.Recipe:
        """Offsets for some attributes, each with a strength of its own.

        Raises:
            UserError: An attribute has no direction here.

        Example:
            ``result.recipe(punctuation=0.3, pronouns=-0.2)``
        """
        for name in strengths:
            if name not in self.attributes:
                raise UserError(f"{name!r} has no direction here; {', '.join(self.attributes)} have.")
        return iv.Recipe([
            iv.Offset(
                self.layer, self.vectors[self.attributes.index(name)], strength=strength, positions="last+generated"
            )
            for name, strength in strengths.items()
        ])  # fmt: skip

    def leakage(self) -> pd.DataFrame:
        """The matrix: a row per steered attribute, a column per measured one."""
        moves = self.table.pivot(index="steered", columns="measured", values="score")
        return moves.loc[self.attributes, self.attributes]

    def figure(self) -> go.Figure:
        """The leakage matrix."""
        matrix = self.leakage()
        drawn = go.Figure(
            go.Heatmap(z=matrix.to_numpy(), x=list(matrix), y=list(matrix.index), colorscale="RdBu", zmid=0)
        )
        drawn.update_layout(title=self.title, xaxis_title="measured", yaxis_title="steered")
        return drawn

    def summary(self) -> str:
        """On the diagonal and beside it."""
        own = self.table[self.table["steered"] == self.table["measured"]]
        other = self.table[self.table["steered"] != self.table["measured"]]
        return (
            f"Each direction moves its own attribute by {own['score'].mean():.2f} and others by "
            f"{other['score'].abs().mean():.2f} standard deviations (differences of means "
            f"{other['plain'].abs().mean():.2f}); largest cosine of two {self.gram['cosine'].abs().max():.2f} "
            f"(before {self.gram['plain'].abs().max():.2f}); range {self.metrics['range'].mean():.2f} (random "
            f"{self.metrics['range_control'].mean():.2f}), disentanglement "
            f"{self.metrics['disentanglement'].mean():.2f} (random "
            f"{self.metrics['disentanglement_control'].mean():.2f}); intervals over {self.resampled}; control: "
            f"{self.control}"
        )


@method(
    "attribute-directions",
    group="attributes",
    question="Can several attributes be steered one by one, without leaking into each other?",
    papers=(
        "Image-to-Image Translation with Disentangled Latent Vectors for Face Editing",
        "Att-Adapter: A Robust and Precise Domain-Specific Multi-Attributes T2I Diffusion Adapter via Conditional "
        "Variational Autoencoder",
    ),
    cost="one pass per text, then three per attribute and two per random direction",
    example="--attributes length,punctuation",
    any_adapter="whether the directions move read-outs more than random ones, whatever made them",
)
def attribute_directions(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    attributes: list[str],
    *,
    layer: int | float | str = 0.5,
    penalty: float = 1.0,
    strength: float = 0.2,
    controls: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001
) -> AttributeDirections:
    """Train one direction per attribute on mean states of texts, with a penalty on their cosines, and test leakage.

    The texts are the prompts themselves; each attribute parts them at its median. Directions are unit vectors whose
    projection tells high texts from low ones on one half (logistic loss) plus ``penalty`` times the sum of squared
    cosines. On the other half each is added at the layer, and linear read-outs of all attributes at the last layer,
    fitted without any steering, say what moved.

    Both sources are vision models. Carried over are orthogonal directions, and how a continuous adapter of several
    attributes is judged (Att-Adapter): by the range of each attribute's control and by what else it moves.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Texts that differ in the attributes.
        attributes: Two or more attributes or behaviours of a text, such as length, punctuation, contains:sea.
        layer: Where directions are trained and added: an index, or a fraction of the depth.
        penalty: Weight of orthogonality; 0: none.
        strength: Of each direction in the test, in mean norms of the site.
        controls: Random directions.
        batch_size: Texts per forward pass.
        seed: Of halves, random directions and resampling.

    Returns:
        An :class:`AttributeDirections`; ``.recipe(length=0.2)`` steers.

    Raises:
        UserError: Fewer than two attributes, one that does not vary over the texts, or the last layer.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    (place,) = resolve_layers(layer, model.n_layers)
    if len(set(attributes)) < 2:
        raise UserError("Leakage is between attributes: give two or more.")
    if place == model.n_layers - 1:
        raise UserError("Read-outs stand at the last layer, so directions must act before it: choose an earlier layer.")
    rows = Prompts.of(prompts)
    parts = halves(rows, seed)
    with counted(model) as passes:
        data = [_Texts(model, part, attributes, place, batch_size) for part in parts]
        plain = _contrasts(data[0].states, data[0].high)
        vectors = disentangled(data[0].states, data[0].high, penalty)
        size = mean_size(data[0].states)
        readout = _Readout(data[0])
        moved = data[1].moved(readout, vectors * size, strength)
        before = data[1].moved(readout, plain * size, strength)
        drawn = random_directions(vectors[0] * size, draws=controls, seed=seed)
        up = data[1].moved(readout, torch.stack(list(drawn)), strength)
        random = up.mean(0)
        spans = [
            high - data[1].moved(readout, both, -strength)
            for high, both in ((moved, vectors * size), (up, torch.stack(list(drawn))))
        ]
    return AttributeDirections(
        table=_table(attributes, moved, before, random, parts[1], seed),
        control=f"{controls} random directions of the same norm",
        provenance=Provenance.of("attribute_directions", model, rows, seed=seed, forward_passes=passes.forward),
        gram=_gram(attributes, vectors, plain), metrics=_metrics(attributes, spans[0], spans[1], parts[1], seed),
        readout=readout.accuracy(attributes, data[1]), layer=place, attributes=list(attributes), vectors=vectors * size,
        resampled=units_of(parts[1].clusters).replace("prompts", "texts"),
    )  # fmt: skip


class _Texts:
    """States and attributes of the texts of one half."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, attributes: Sequence[str], layer: int, batch_size: int
    ) -> None:
        self.model, self.layer, self.batch_size = model, layer, batch_size
        self.ids = encode(rows, model.tokenizer, model.max_positions)
        texts = [render(row, model.tokenizer) if row.prompt is None else row.prompt for row in rows]
        values = np.array([[read_behaviour(name)(text) for name in attributes] for text in texts])
        middle = np.median(values, axis=0)
        high = values > middle
        if odd := [name for name, labels in zip(attributes, high.T, strict=True) if labels.all() or not labels.any()]:
            raise UserError(
                f"{odd[0]!r} does not part the texts of one half into high and low: give texts that differ."
            )
        self.high = torch.from_numpy(high)
        both = self._read(iv.Recipe([]))
        self.states, self.last = both[:, 0], both[:, 1]

    def _read(self, recipe: iv.Recipe) -> Float[Tensor, "text two d_model"]:
        layers = [self.layer, self.model.n_layers - 1]
        with recipe.applied(self.model):
            return text_states(self.model, [[] for _ in self.ids], self.ids, layers, self.batch_size)

    def moved(self, readout: _Readout, vectors: Tensor, strength: float) -> Float[np.ndarray, "vector text attribute"]:
        """The change of every read-out under each vector."""
        plain = readout.of(self.last)
        scores = []
        for vector in vectors:
            recipe = iv.Recipe([iv.Offset(self.layer, vector, strength=strength)])
            scores.append((readout.of(self._read(recipe)[:, 1]) - plain).numpy())
        return np.stack(scores)


class _Readout:
    """Ridge regressions of the attributes on states, in standard deviations of their outputs over texts."""

    def __init__(self, texts: _Texts) -> None:
        x = texts.last.double()
        self.mean = x.mean(0)
        centred = x - self.mean
        gram = centred @ centred.T
        wanted = texts.high.double() * 2 - 1
        inner = torch.linalg.solve(
            gram + 0.1 * gram.diagonal().mean() * torch.eye(len(x)).double(), wanted - wanted.mean(0)
        )
        self.weights = centred.T @ inner
        self.shift = wanted.mean(0)
        self.scale = (centred @ self.weights).std(0).clamp(min=1e-12)

    def of(self, states: Tensor) -> Float[Tensor, "text attribute"]:
        return (states.double() - self.mean) @ self.weights / self.scale

    def accuracy(self, attributes: Sequence[str], texts: _Texts) -> pd.DataFrame:
        said = self.of(texts.last) * self.scale + self.shift > 0
        right = (said == texts.high).double().mean(0)
        common = torch.maximum(texts.high.double().mean(0), 1 - texts.high.double().mean(0))
        return pd.DataFrame({"attribute": list(attributes), "accuracy": right.numpy(), "control": common.numpy()})


def _contrasts(states: Tensor, high: Tensor) -> Float[Tensor, "attribute d_model"]:
    """Unit differences of means, high minus low."""
    differences = [states[labels].mean(0) - states[~labels].mean(0) for labels in high.T]
    return torch.nn.functional.normalize(torch.stack(differences), dim=-1)


def disentangled(
    states: Float[Tensor, "text d_model"], high: Tensor, penalty: float
) -> Float[Tensor, "attribute d_model"]:
    """Unit directions that tell high from low, held apart by ``penalty`` times the sum of their squared cosines."""
    centred = states - states.mean(0)
    directions = _contrasts(states, high).clone().requires_grad_()
    scale = (centred @ directions.detach().T).std(0).clamp(min=1e-12)
    signs = high.float() * 2 - 1
    optimiser = torch.optim.Adam([directions], lr=0.02)
    off = 1 - torch.eye(len(directions))
    with torch.enable_grad():
        for _ in range(STEPS):
            unit = torch.nn.functional.normalize(directions, dim=-1)
            fit = torch.nn.functional.softplus(-signs * (centred @ unit.T) / scale).mean()
            loss = fit + penalty * ((unit @ unit.T) * off).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return torch.nn.functional.normalize(directions.detach(), dim=-1)


def _gram(attributes: Sequence[str], vectors: Tensor, plain: Tensor) -> pd.DataFrame:
    return pd.DataFrame([
        {"first": attributes[a], "second": attributes[b], "cosine": float(vectors[a] @ vectors[b]),
         "plain": float(plain[a] @ plain[b])}
        for a in range(len(attributes)) for b in range(a + 1, len(attributes))
    ])  # fmt: skip


def disentanglement(
    spans: Float[np.ndarray, "text attribute"], own: int, times: Float[np.ndarray, "draw text"]
) -> Float[np.ndarray, "draw two"]:
    """(range of the own read-out, its share of all squared movement) for every weighting of the texts."""
    means = times @ spans / times.sum(1, keepdims=True)
    return np.stack([means[:, own], means[:, own] ** 2 / np.maximum((means**2).sum(1), 1e-30)], 1)


def _metrics(
    attributes: Sequence[str], spans: np.ndarray, random: np.ndarray, rows: Prompts, seed: int
) -> pd.DataFrame:
    times = np.concatenate([np.ones((1, len(rows))), bootstrap_weights(len(rows), 1_000, seed, rows.clusters)])
    lines = []
    for number, name in enumerate(attributes):
        drawn = disentanglement(spans[number], number, times)
        low, high = np.quantile(drawn[1:], (0.025, 0.975), axis=0)
        chance = np.array([np.abs(disentanglement(axes, number, times[:1])[0]) for axes in random]).mean(0)
        line = {"attribute": name}
        for place, what in enumerate(("range", "disentanglement")):
            line |= {what: drawn[0, place], f"{what}_low": low[place], f"{what}_high": high[place],
                     f"{what}_control": chance[place]}  # fmt: skip
        lines.append(line)
    return pd.DataFrame(lines)


def _table(
    attributes: Sequence[str], moved: np.ndarray, plain: np.ndarray, random: np.ndarray, rows: Prompts, seed: int
) -> pd.DataFrame:
    return with_q(
        pd.DataFrame([
            {"steered": steered, "measured": measured,
             **beside_control(moved[a, :, b], random[:, b], rows.clusters, seed=seed), "plain": plain[a, :, b].mean()}
            for a, steered in enumerate(attributes) for b, measured in enumerate(attributes)
        ])
    )  # fmt: skip
