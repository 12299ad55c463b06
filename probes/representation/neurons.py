"""Which single neurons tell a concept, before and after tuning, and what excites them most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy import stats
from scipy.stats import rankdata

from probes.call_settings import of_recording
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import dealt_folds
from probes.resampling import bootstrap_weights, shuffled_labels, units_of
from probes.results import ProbeResult
from probes.scored import with_q
from workbench.argument_checks import check_recording
from workbench.cards import visible
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.recording import Recording
from workbench.typing import Bool, Float


@dataclass(frozen=True, kw_only=True)
class NeuronConcepts(ProbeResult):
    """Concept selectivity of neurons.

    ``table``: site, layer, ``direction`` (the neuron's number), ``score`` = selectivity of the tuned model less that of
    the base (area under the ROC curve, turned so that 0.5 is none and 1 is perfect), with its interval, p and q over
    all neurons; ``base``, ``tuned``: their areas (below 0.5: the neuron fires on the other class). Only the ``top``
    neurons of each model and the most gained are listed. ``layers``: per layer the mean and largest selectivity, and
    the held-out accuracy of a few neurons together. ``examples``: the prompts that excite the listed neurons most, of
    each model.
    """

    layers: pd.DataFrame
    examples: pd.DataFrame
    concept: str
    resampled: str

    title: ClassVar[str] = "Concept neurons"
    unit: ClassVar[str] = "selectivity, tuned - base"

    def figure(self) -> go.Figure:
        """The listed neurons, best first."""
        shown = self.frame().head(20)
        names = "L" + shown["layer"].astype(int).astype(str) + " N" + shown["direction"].astype(int).astype(str)
        return labelled_points(shown.assign(neuron=names), "neuron", title=self.title, unit=self.unit)

    def summary(self) -> str:
        row = self.frame().iloc[0]
        sure = int((self.table["q"] < 0.05).sum())
        return (
            f"{self.concept}: {sure} listed neurons changed in selectivity (q < 0.05); most gained L{row['layer']:.0f} "
            f"N{row['direction']:.0f}, area {row['base']:.2f} to {row['tuned']:.2f} ({row['score']:+.2f} "
            f"[{row['low']:.2f}, {row['high']:.2f}], control {row['control']:+.2f}), over {self.resampled}. Control: "
            f"{self.control}"
        )


def _check(rows: Prompts, said: Mapping[str, Any]) -> None:
    """Refuse a concept that no row is of before the models are loaded."""
    values = [row.as_dict().get(said["labels"] or "label") for row in rows]
    if None not in values:
        _of_concept([str(value) for value in values], said["concept"])


@method(
    "concept-neurons",
    group="representation",
    question="Which neurons came to tell a concept, and which lost it?",
    papers=("Deep Learning Face Attributes in the Wild",),
    records=Recorded(sites=("mlp_post",)),
    needs=Needs(columns=("label",)),
    cost="one forward pass of each model",
    example="--labels topic --concept animals",
    check=_check,
)
def concept_neurons(  # noqa: PLR0913 (a public call)
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    concept: str = "",
    top: int = 10,
    together: int = 5,
    shown: int = 5,
    folds: int = 4,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> NeuronConcepts:
    """Area under the ROC curve of every neuron for one concept against the rest, in both models (Liu et al. 2015).

    The earliest claim that fine-tuning enriches concepts in neurons, measured: selectivity |area - 0.5| + 0.5 of tuned
    less base, beside random concepts of the same size (the control), with the prompts that excite a neuron most. Per
    layer the ``together`` best neurons of the training folds are combined by the sign of their areas and judged on the
    others.

    Args:
        recording: Both models at neurons (mlp_post) or any other site.
        labels: The class of each prompt; by default the column label.
        concept: The class that is the concept; by default the last in sorted order.
        top: Neurons listed for each of: most selective before, after, most gained, most lost.
        together: Neurons of the combination.
        shown: Prompts shown of each listed neuron.
        folds: Folds of the combination.
        draws: Random concepts, and resamples of the intervals.
        seed: Their seed.

    Returns:
        A :class:`NeuronConcepts`.

    Raises:
        UserError: No prompt is of the concept, or all are.
    """
    check_recording(recording)
    rows = PromptRows.of(recording)
    labelled = [str(label) for label in rows.labels(labels)]
    named, y = _of_concept(labelled, concept)
    mixed = shuffled_labels(y.astype(np.int64), draws, seed + 1, rows.clusters).astype(bool)
    dealt = dealt_folds(folds, rows.clusters, y.astype(np.int64), seed)
    bar = progress or Silent()
    bar.start("concept neurons", n_readings(recording, rows))
    tables, layers, neurons_of = [], [], {}
    for own, sides in cells_of(recording, rows):
        for number, cell in enumerate(own):
            values = {role: side[number].numpy() for role, side in sides.items()}
            table, null = neuron_table(values, y, mixed)
            tables.append(table.assign(**cell))
            layers.append({**cell, **_of_layer(table, null, values, y, dealt, together)})
            neurons_of[cell["layer"], cell.get("head", -1), cell["site"]] = values
        bar.advance()
    bar.finish()
    whole = pd.concat(tables, ignore_index=True)
    whole = with_q(whole)
    listed = _listed(whole, top)
    return NeuronConcepts(
        table=_with_intervals(listed, neurons_of, y, rows.clusters, draws, seed),
        control=f"random concepts of as many prompts ({draws})",
        provenance=of_recording("concept_neurons", recording, ("base", "tuned"), seed),
        layers=pd.DataFrame(layers),
        examples=_examples(listed, neurons_of, rows, labelled, shown),
        concept=named,
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _of_concept(labelled: Sequence[str], concept: str) -> tuple[str, Bool[np.ndarray, " row"]]:
    """The concept (the last class in sorted order where it is not named) and which rows are of it."""
    named = concept or sorted(set(labelled))[-1]
    y = np.array([label == named for label in labelled])
    if y.sum() < 2 or (~y).sum() < 2:
        raise UserError(f"{int(y.sum())} of {len(y)} prompts are {named!r}: give two or more of it and of others.")
    return named, y


def areas(values: Float[np.ndarray, "row neuron"], y: np.ndarray) -> Float[np.ndarray, "draw neuron"]:
    """Areas under the ROC curve of every neuron for each labelling [draw, row]; ties count half."""
    ranks = rankdata(values, axis=0)
    positive = y.sum(1, keepdims=True)
    above = y.astype(np.float64) @ ranks - positive * (positive + 1) / 2
    return above / (positive * (y.shape[1] - positive))


def neuron_table(
    values: dict[str, Float[np.ndarray, "row neuron"]], y: np.ndarray, mixed: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """Per neuron both areas, the gain in selectivity, its control and p; and the gains of random concepts [draw,
    neuron]."""
    true = {role: areas(value, y[None])[0] for role, value in values.items()}
    gain = np.abs(true["tuned"] - 0.5) - np.abs(true["base"] - 0.5)
    null = np.abs(areas(values["tuned"], mixed) - 0.5) - np.abs(areas(values["base"], mixed) - 0.5)
    spread = null.std(0)
    reached = (np.abs(null) >= np.abs(gain) - 1e-12).sum(0)
    counted_p = (1 + reached) / (1 + len(null))
    tail = 2 * stats.norm.sf(np.abs(gain) / np.maximum(spread, 1e-12))
    p = np.where(np.abs(gain) < 1e-12, 1.0, np.where(reached > 0, counted_p, np.minimum(counted_p, tail)))
    table = pd.DataFrame({
        "direction": np.arange(len(gain)), "score": gain, "control": null.mean(0), "p": p, "base": true["base"],
        "tuned": true["tuned"],
    })  # fmt: skip
    return table, null


def _of_layer(
    table: pd.DataFrame,
    null: np.ndarray,
    values: dict[str, np.ndarray],
    y: np.ndarray,
    dealt: np.ndarray,
    together: int,
) -> dict[str, float]:
    numbers = {"mean gain": float(table["score"].mean()), "mean gain of random concepts": float(null.mean())}
    for role, own in values.items():
        numbers[f"best area, {role}"] = float((np.abs(table[role] - 0.5) + 0.5).max())
        numbers[f"{together} neurons together, {role}"] = combined_accuracy(own, y, dealt, together)
    return numbers


def combined_accuracy(values: np.ndarray, y: np.ndarray, dealt: np.ndarray, together: int) -> float:
    """Held-out balanced accuracy of the sum of the best neurons' standard scores, each turned by its area."""
    right = np.zeros(len(y), dtype=bool)
    for fold in np.unique(dealt):
        train, test = dealt != fold, dealt == fold
        own = areas(values[train], y[train][None])[0]
        best = np.argsort(-np.abs(own - 0.5), kind="stable")[:together]
        centre, size = values[train][:, best].mean(0), values[train][:, best].std(0) + 1e-12
        turned = np.sign(own[best] - 0.5) / size
        scores = (values[:, best] - centre) @ turned
        limit = (scores[train & y].mean() + scores[train & ~y].mean()) / 2
        right[test] = (scores[test] > limit) == y[test]
    return float((right[y].mean() + right[~y].mean()) / 2)


def _listed(whole: pd.DataFrame, top: int) -> pd.DataFrame:
    """The most selective neurons of either model, and the most gained and lost."""
    size = {role: np.abs(whole[role] - 0.5) for role in ("base", "tuned")}
    orders = [size["base"], size["tuned"], whole["score"], -whole["score"]]
    listed = np.unique(np.concatenate([np.argsort(-order.to_numpy(), kind="stable")[:top] for order in orders]))
    return whole.iloc[listed].reset_index(drop=True)


def _values(neurons_of: dict[Any, dict[str, np.ndarray]], row: Any) -> dict[str, np.ndarray]:
    head = row.get("head", -1)
    own = neurons_of[row["layer"], -1 if head != head else int(head), row["site"]]
    return {role: activations[:, int(row["direction"])] for role, activations in own.items()}


def _with_intervals(
    listed: pd.DataFrame, neurons_of: Any, y: np.ndarray, clusters: np.ndarray, draws: int, seed: int
) -> pd.DataFrame:
    """Percentile intervals of the listed neurons' gains over resampled prompts.

    A neuron keeps the side of 0.5 that it is on with all prompts: distances from it, which are never negative, would
    grow in every resample where a model is near 0.5, and leave the gain outside of its interval.
    """
    weights = bootstrap_weights(len(y), draws, seed, clusters).astype(np.int64)
    edges = []
    for row in listed.to_dict("records"):
        own, gains = _values(neurons_of, row), []
        side = {role: np.sign(float(row[role]) - 0.5) or 1.0 for role in own}
        for times in weights:
            again = np.repeat(np.arange(len(y)), times)
            if 0 < y[again].sum() < len(again):
                apart = {role: side[role] * (areas(values[again][:, None], y[again][None])[0, 0] - 0.5)
                         for role, values in own.items()}  # fmt: skip
                gains.append(apart["tuned"] - apart["base"])
        edges.append(np.quantile(gains, (0.025, 0.975)) if gains else (np.nan, np.nan))
    low, high = np.array(edges).T
    return listed.assign(low=low, high=high, n=len(y))


def _examples(listed: pd.DataFrame, neurons_of: Any, rows: PromptRows, labelled: list[str], shown: int) -> pd.DataFrame:
    """site, layer, direction, model, rank, prompt (its number), token (the last recorded), label, value."""
    last = rows.index.groupby("prompt")["token"].last()
    lines = []
    for row in listed.to_dict("records"):
        for role, values in _values(neurons_of, row).items():
            for rank, number in enumerate(np.argsort(-values, kind="stable")[:shown]):
                prompt = int(rows.prompts[number])
                lines.append({
                    "site": row["site"], "layer": row["layer"], "direction": row["direction"], "model": role,
                    "rank": rank, "prompt": prompt, "token": visible(str(last.loc[prompt])), "label": labelled[number],
                    "value": float(values[number]),
                })  # fmt: skip
    return pd.DataFrame(lines)
