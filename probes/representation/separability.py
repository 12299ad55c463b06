"""How far apart classes lie in each model's states, and how far states drifted once rotation is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import plotly.graph_objects as go
import torch

from probes.call_settings import of_recording
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import FEWEST, classes_of
from probes.resampling import bootstrap_weights, shuffled_labels, units_of
from probes.results import ProbeResult
from probes.scored import with_q
from workbench.argument_checks import check_recording
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent
from workbench.recording.recording import Recording
from workbench.typing import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class CellShifts(ProbeResult):
    """A number per site and layer, of both models, and their difference.

    ``table``: site, layer (head), score with its interval over prompts, ``control``, p, q, and what the method adds.
    """

    heading: str
    measured: str
    resampled: str
    tested: str = "beyond the control"
    """What q < 0.05 says of a cell."""

    title: ClassVar[str] = "States of base and tuned model"
    unit: ClassVar[str] = "tuned - base"

    def figure(self) -> go.Figure:
        """Score by cell, the control as a cross."""
        names = self.table["site"] + " " + self.table["layer"].astype(int).astype(str)
        return labelled_points(self.table.assign(cell=names), "cell", title=self.heading, unit=self.measured)

    def summary(self) -> str:
        row = self.table.iloc[int(self.table["score"].abs().to_numpy().argmax())]
        moved = int((self.table["q"] < 0.05).sum())
        return (
            f"{self.heading}: {moved} of {len(self.table)} cells {self.tested} (q < 0.05); most: {row['site']} of "
            f"layer {row['layer']:.0f}, {row['score']:+.3g} [{row['low']:.3g}, {row['high']:.3g}] {self.measured}, "
            f"control {row['control']:+.3g}, over {self.resampled}. Control: {self.control}"
        )


@method(
    "separability",
    group="representation",
    question="Did tuning pull the classes apart in the states, and does that hold on augmented inputs?",
    papers=("Effectiveness of Data Augmentation for Parameter Efficient Tuning with Limited Data",),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",), per_class=FEWEST),
    cost="one forward pass of each model",
    example="--labels topic",
)
def class_separability(
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    variants: Annotated[Sequence[Any] | None, As("column")] = None,
    spans: Annotated[Sequence[Any] | None, As("spans")] = None,
    draws: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> CellShifts:
    """Share of the states' variance that lies between the classes, of tuned less base (Guo et al. 2023).

    The share is tr(S_between) / tr(S_total), between 0 and 1, with the part that classes of no meaning would give taken
    out (as in epsilon squared). ``variants`` (clean, augmented) reports it for the rows of each value by themselves, as
    columns ``base: clean`` and so on. The control exchanges the labels.

    Args:
        recording: Both models on labelled prompts.
        labels: The class of each prompt; by default the column label.
        variants: A column that says which form of input a row is.
        spans: Where in each prompt is looked: a column that holds a text of it or two numbers of characters, or
            role:user; in Python token spans, as ``row_spans`` gives them. By default everything that was recorded.
        draws: Resamples of the intervals, and exchanges of the labels.
        seed: Their seed.

    Returns:
        A :class:`CellShifts`; ``base`` and ``tuned`` hold the shares.

    Raises:
        UserError: One class, too few rows of one, or a recording without both models.
    """
    check_recording(recording)
    rows = PromptRows.of(recording, spans)
    y, _ = classes_of(rows.labels(labels))
    weights = np.concatenate([np.ones((1, len(y))), bootstrap_weights(len(y), draws, seed, rows.clusters)])
    mixed = shuffled_labels(y, draws, seed + 1, rows.clusters)
    parts = _variants(rows, variants)
    bar = progress or Silent()
    bar.start("separability", n_readings(recording, rows))
    lines = []
    for own, sides in cells_of(recording, rows):
        for number, cell in enumerate(own):
            share = {role: _shares(features[number], y, weights, mixed) for role, features in sides.items()}
            drawn, null = (share["tuned"][place] - share["base"][place] for place in (0, 1))
            low, high = np.nanquantile(drawn[1:], (0.025, 0.975))
            p = (1 + (np.abs(null) >= abs(drawn[0]) - 1e-12).sum()) / (1 + draws)
            lines.append({
                **cell, "score": float(drawn[0]), "low": low, "high": high, "control": float(null.mean()), "p": p,
                "base": float(share["base"][0][0]), "tuned": float(share["tuned"][0][0]), "n": len(y),
                **_by_variant(sides, number, y, parts),
            })  # fmt: skip
        bar.advance()
    bar.finish()
    return CellShifts(
        table=with_q(lines),
        control=f"the labels exchanged ({draws} times)",
        provenance=of_recording("class_separability", recording, ("base", "tuned"), seed),
        heading="Class separability",
        measured="share of variance between classes, tuned - base",
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def between_share(
    gram: Float[np.ndarray, "row row"], y: Int[np.ndarray, " row"], weights: Float[np.ndarray, "draw row"]
) -> Float[np.ndarray, " draw"]:
    """tr(S_between) / tr(S_total) for each weighting of the rows, less its share by chance; from inner products."""
    squares = np.diag(gram)
    total = weights.sum(1)
    spread = weights @ squares - np.einsum("dr,rs,ds->d", weights, gram, weights, optimize=True) / total
    inside = np.zeros(len(weights))
    for number in range(int(y.max()) + 1):
        own = weights * (y == number)
        size = np.maximum(own.sum(1), 1e-12)
        inside += own @ squares - np.einsum("dr,rs,ds->d", own, gram, own, optimize=True) / size
    classes = int(y.max()) + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = inside / (total - classes)
        return np.nan_to_num(1 - (inside + (classes - 1) * rest) / spread)


def _shares(
    x: Float[Tensor, "row d"], y: np.ndarray, weights: np.ndarray, mixed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(observed and resampled, with exchanged labels)"""
    centred = (x - x.mean(0)).double()
    gram = (centred @ centred.T).numpy()
    unit = np.ones((1, len(y)))
    return between_share(gram, y, weights), np.array([between_share(gram, other, unit)[0] for other in mixed])


def _variants(rows: PromptRows, variants: Sequence[Any] | None) -> dict[str, np.ndarray]:
    if variants is None:
        return {}
    of = np.array([str(label) for label in rows.labels(variants)])
    return {name: of == name for name in dict.fromkeys(of.tolist())}


def _by_variant(sides: dict[str, Tensor], number: int, y: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, float]:
    shares = {}
    for name, own in parts.items():
        present = np.unique(y[own], return_inverse=True)[1]
        for role, features in sides.items():
            x = features[number][torch.from_numpy(own)].double()
            gram = ((x - x.mean(0)) @ (x - x.mean(0)).T).numpy()
            known = present.max() > 0
            shares[f"{role}: {name}"] = (
                float(between_share(gram, present, np.ones((1, len(x))))[0]) if known else np.nan
            )
    return shares


@method(
    "procrustes-drift",
    group="representation",
    question="Did the states change, or were they only rotated?",
    papers=("DR-Tune: Improving Fine-tuning of Pretrained Visual Models by Distribution Regularization with Semantic "
            "Calibration",),
    records=Recorded(sites=("resid_post",)),
    cost="one forward pass of each model",
    example="--labels topic",
)  # fmt: skip
def procrustes_drift(
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    spans: Annotated[Sequence[Any] | None, As("spans")] = None,
    folds: int = 4,
    draws: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> CellShifts:
    """Distance of tuned from base states before and after the best rotation and shift (orthogonal Procrustes).

    DR-Tune's calibration (Zhou et al. 2023) as a measure: a global rotation is fitted on some prompts (in the space
    that they span) and judged on the others, so that it cannot fit noise. ``plain``: drift as it is; ``score``: what is
    left after rotation and shift, both as a share of the base states' own variance; p and q test that it is less than
    ``plain``; ``class_shift``: how far class
    centres still lie from their own after it, where there are labels. The control matches the rows to other prompts'
    rows: what alignment makes of states that do not belong together.

    Args:
        recording: Both models on the same prompts.
        labels: The class of each prompt, for the shift of class centres; by default the column label where there is
            one.
        spans: Where in each prompt is looked: a column that holds a text of it or two numbers of characters, or
            role:user; in Python token spans, as ``row_spans`` gives them. By default everything that was recorded.
        folds: Parts of the prompts; each is judged by the rotation of the others.
        draws: Resamples of the intervals.
        seed: Of folds and intervals.

    Returns:
        A :class:`CellShifts`; ``after_shift``: what is left once the means agree; ``rotation``: the share of that which
        the rotation explains.

    Raises:
        UserError: Fewer prompts than twice the folds, or a recording without both models.
    """
    check_recording(recording)
    rows = PromptRows.of(recording, spans)
    groups = np.unique(rows.clusters)
    if folds < 2 or len(groups) < 2 * folds:
        raise UserError(f"{len(groups)} prompts (or groups) are too few for {folds} folds: give {2 * max(folds, 2)}.")
    of_group = np.random.default_rng(seed).permutation(len(groups)) % folds
    dealt = of_group[np.searchsorted(groups, rows.clusters)]
    classes = _known_classes(rows, labels)
    weights = np.concatenate([np.ones((1, len(dealt))), bootstrap_weights(len(dealt), draws, seed, rows.clusters)])
    bar = progress or Silent()
    bar.start("Procrustes drift", n_readings(recording, rows))
    lines = []
    for own, sides in cells_of(recording, rows):
        for number, cell in enumerate(own):
            lines.append({**cell, **_drift(sides["base"][number], sides["tuned"][number], dealt, classes, weights)})
        bar.advance()
    bar.finish()
    return CellShifts(
        table=with_q(lines),
        control="tuned states of other prompts, aligned the same way",
        provenance=of_recording("procrustes_drift", recording, ("base", "tuned"), seed),
        heading="Drift after rotation",
        measured="share of the base states' variance",
        resampled=units_of(rows.clusters),
        tested="whose drift a rotation and shift explain in part",
    )


def _known_classes(rows: PromptRows, labels: Sequence[Any] | None) -> np.ndarray | None:
    values = rows.labels(labels)
    if labels is None and any(value is None or value != value for value in values):
        return None
    return np.unique([str(value) for value in values], return_inverse=True)[1]


def aligned(
    base: Float[Tensor, "row d"], tuned: Float[Tensor, "row d"], dealt: Int[np.ndarray, " row"]
) -> Float[Tensor, "row d"]:
    """The tuned rows rotated and shifted onto the base, each by the map fitted to the other folds.

    Outside of what those folds' rows span nothing is known of the rotation, and rows stay as they are.
    """
    rotated = torch.empty_like(base)
    for fold in np.unique(dealt):
        inside = torch.from_numpy(dealt != fold)
        centre_b, centre_t = base[inside].mean(0), tuned[inside].mean(0)
        x, y = tuned[inside] - centre_t, base[inside] - centre_b
        left, values, right = torch.linalg.svd(x.T @ y, full_matrices=False)
        used = values > values.max() * 1e-9
        left, right = left[:, used], right[used]
        moved = tuned[~inside] - centre_t
        mapped = (moved @ left) @ right
        beyond = moved - (moved @ left) @ left.T
        outside = beyond - (beyond @ right.T) @ right
        rotated[~inside] = mapped + outside + centre_b
    return rotated


def centred_on(
    base: Float[Tensor, "row d"], tuned: Float[Tensor, "row d"], dealt: Int[np.ndarray, " row"]
) -> Float[Tensor, "row d"]:
    """The tuned rows moved by the difference of both means, each by that of the other folds."""
    centred = torch.empty_like(base)
    for fold in np.unique(dealt):
        inside = torch.from_numpy(dealt != fold)
        centred[~inside] = tuned[~inside] - tuned[inside].mean(0) + base[inside].mean(0)
    return centred


def _drift(
    base: Tensor, tuned: Tensor, dealt: np.ndarray, classes: np.ndarray | None, weights: np.ndarray
) -> dict[str, float]:
    base, tuned = base.double(), tuned.double()
    spread = float((base - base.mean(0)).square().sum(1).mean())
    plain = ((tuned - base).square().sum(1) / max(spread, 1e-30)).numpy()
    rotated = aligned(base, tuned, dealt)
    shifted = float((centred_on(base, tuned, dealt) - base).square().sum(1).mean()) / max(spread, 1e-30)
    left = ((rotated - base).square().sum(1) / max(spread, 1e-30)).numpy()
    wrong = torch.roll(tuned, max(1, len(base) // 2), 0)
    control = ((aligned(base, wrong, dealt) - base).square().sum(1) / max(spread, 1e-30)).numpy()
    drawn, plains = (weights @ left) / weights.sum(1), (weights @ plain) / weights.sum(1)
    low, high = np.quantile(drawn[1:], (0.025, 0.975))
    gained = plains[1:] - drawn[1:]
    p = min(1.0, 2 * (1 + min((gained <= 1e-12).sum(), (gained >= -1e-12).sum())) / len(weights))
    shift = np.nan
    if classes is not None and classes.max() > 0:
        centres = [
            (rotated - base)[torch.from_numpy(classes == number)].mean(0).norm() for number in range(classes.max() + 1)
        ]
        shift = float(torch.stack(centres).mean()) / max(spread, 1e-30) ** 0.5
    return {
        "score": float(drawn[0]), "low": low, "high": high, "control": float(control.mean()), "p": p,
        "plain": float(plain.mean()), "after_shift": shifted,
        "rotation": float(1 - drawn[0] / shifted) if shifted > 1e-12 else 0.0,
        "class_shift": shift, "n": len(base),
    }  # fmt: skip
