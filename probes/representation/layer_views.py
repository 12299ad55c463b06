"""layer_views: every layer of base and task model as a view of the prompt, weighed in one ensemble (LEVI)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import of_recording
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import FEWEST, classes_of, held_out_probabilities
from probes.resampling import bootstrap_weights, shuffled_labels, units_of
from probes.results import ProbeResult
from probes.scored import with_q
from workbench.argument_checks import check_recording
from workbench.errors import UserError
from workbench.figures.series import lines_by_layer
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent, tracked
from workbench.recording.recording import Recording
from workbench.stats.shares import share_interval
from workbench.typing import Float, Int

ROUNDS = 200
"""Of expectation and maximisation; weights change no more after fewer."""


@dataclass(frozen=True, kw_only=True)
class LayerViews(ProbeResult):
    """One row per view: a layer of one of the two models.

    ``table``: model (base, tuned), layer, ``score``: its weight in the ensemble (all weights sum to 1) with its
    interval over prompts; ``control``: its mean weight where the labels are exchanged, ``q`` of a larger one;
    ``alone``: held-out accuracy of the view. ``held_out``: ensemble (learned weights, even weights, the last layer of
    each model, the largest class), score, low, high: accuracy on the prompts that did not fit the weights.
    """

    held_out: pd.DataFrame
    classes: tuple[str, ...]
    resampled: str

    title: ClassVar[str] = "Layers as views in an ensemble"
    unit: ClassVar[str] = "weight in the ensemble"

    def figure(self) -> go.Figure:
        """Weight by layer, a line per model."""
        drawn = self.table.assign(member=self.table["model"], change=self.table["score"])
        return lines_by_layer(drawn, title=self.title, unit=self.unit)

    def summary(self) -> str:
        best = self.table.sort_values("score", kind="stable").iloc[-1]
        own = self.table.groupby("model")["score"].sum()
        said = ", ".join(f"{row.ensemble} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}]"
                         for row in self.held_out.itertuples())  # fmt: skip
        return (
            f"Base layers have {own.get('base', 0.0):.2f} of the weight, tuned ones {own.get('tuned', 0.0):.2f}; most: "
            f"layer {best['layer']:.0f} of {best['model']}, {best['score']:.2f} [{best['low']:.2f}, "
            f"{best['high']:.2f}] (labels exchanged {best['control']:.2f}); held-out accuracy: {said}; "
            f"over {self.resampled}. Control: {self.control}."
        )


@method(
    "layer-views",
    group="representation",
    question="Which layers of base and tuned model would an ensemble listen to, and is it better than either?",
    papers=("LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views",),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",), per_class=FEWEST),
    cost="one forward pass of each model; a probe per layer, class and fold",
    example="--labels topic",
)
def layer_views(
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    folds: int = 5,
    ridge: float = 1.0,
    draws: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerViews:
    """Fit a linear head on every layer of both models, and weigh the heads' held-out probabilities in one mixture.

    LEVI (Roh et al. 2024) ensembles intermediate layers of a large pre-trained model with those of a small model of
    the task, so that neither's blind spots decide. Here the tuned model is the task model. The weights are those of the
    most likely mixture on one half of the prompts (whole groups); accuracy is told on the other half.

    Args:
        recording: Both models on labelled prompts, residual sites.
        labels: The class of each prompt; by default the column label.
        folds: Folds of the heads' cross-validation; a group is never in two.
        draws: Resamples of the intervals, and exchanges of the labels.
        seed: Of folds, halves, resamples and exchanges.

    Returns:
        A :class:`LayerViews`.

    Raises:
        UserError: One class, too few rows of one, too few groups, or a recording without both models or layers.
    """
    check_recording(recording)
    rows = PromptRows.of(recording)
    y, names = classes_of(rows.labels(labels))
    bar = progress or Silent()
    bar.start("views", n_readings(recording, rows))
    cells, chances = [], []
    for own, sides in tracked(cells_of(recording, rows), bar):
        for role, features in sides.items():
            cells += [{"model": role, **cell} for cell in own]
            chances += [held_out_probabilities(feature, y, rows.clusters, folds, ridge, seed) for feature in features]
    bar.finish()
    if not cells:
        raise UserError("The recording has no site of a layer: record resid_post.")
    stacked = np.stack(chances)  # [view, row, class]
    fit = _half(rows.clusters, seed)
    table = pd.DataFrame(cells).assign(**_weights(stacked, y, fit, rows.clusters, draws, seed))
    return LayerViews(
        table=with_q(table).assign(n=int(fit.sum())),
        control=f"labels exchanged between prompts ({draws} times)",
        provenance=of_recording("layer_views", recording, ("base", "tuned"), seed),
        held_out=_told(table, stacked[:, ~fit], y[~fit], rows.clusters[~fit], seed),
        classes=tuple(names),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def mixture_weights(
    likelihood: Float[np.ndarray, "view row"], times: Float[np.ndarray, "draw row"]
) -> Float[np.ndarray, "draw view"]:
    """The weights of the most likely mixture of the views, for every weighting of the rows (EM from even weights)."""
    weights = np.full((len(times), len(likelihood)), 1 / len(likelihood))
    for _ in range(ROUNDS):
        mixed = np.maximum(weights @ likelihood, 1e-300)
        weights = weights * ((times / mixed) @ likelihood.T) / times.sum(1, keepdims=True)
    return weights


def _half(clusters: Int[np.ndarray, " row"], seed: int) -> np.ndarray:
    groups = np.random.default_rng(seed).permutation(np.unique(clusters))
    if len(groups) < 4:
        raise UserError("Weights are fitted on one half of the prompts and told on the other: give 4 groups or more.")
    return np.isin(clusters, groups[: len(groups) // 2])


def _of(stacked: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "view row"]:
    return np.maximum(stacked[:, np.arange(len(y)), y], 1e-12)


def _weights(
    stacked: np.ndarray, y: np.ndarray, fit: np.ndarray, clusters: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    own, label = stacked[:, fit], y[fit]
    resampled = bootstrap_weights(len(label), draws, seed, clusters[fit])
    weights = mixture_weights(_of(own, label), np.concatenate([np.ones((1, len(label))), resampled]))
    null = np.concatenate([
        mixture_weights(_of(own, mixed), np.ones((1, len(label))))
        for mixed in shuffled_labels(label, draws, seed + 1, clusters[fit])
    ])  # fmt: skip
    low, high = np.quantile(weights[1:], (0.025, 0.975), axis=0)
    p = (1 + (null >= weights[0] - 1e-12).sum(0)) / (1 + draws)
    alone = (stacked.argmax(-1) == y).mean(1)
    return {"score": weights[0], "low": low, "high": high, "control": null.mean(0), "p": p, "alone": alone}


def _told(table: pd.DataFrame, stacked: np.ndarray, y: np.ndarray, clusters: np.ndarray, seed: int) -> pd.DataFrame:
    last = {role: int(np.flatnonzero(table["model"] == role)[-1]) for role in ("base", "tuned")}
    means = {
        "learned weights": np.einsum("v,vrc->rc", table["score"].to_numpy(), stacked), "even weights": stacked.mean(0),
        **{f"last layer of {role}": stacked[place] for role, place in last.items()},
    }  # fmt: skip
    lines = []
    for name, chance in means.items():
        share = share_interval((chance.argmax(-1) == y).astype(float), seed=seed, clusters=clusters)
        lines.append({"ensemble": name, "score": share.estimate, "low": share.low, "high": share.high})
    common = float(np.bincount(y).max() / len(y))
    return pd.DataFrame([*lines, {"ensemble": "largest class", "score": common, "low": common, "high": common}])
