"""direction_transfer: whether a direction found in one model means the same in the other, through a map of states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import plotly.graph_objects as go

from probes.call_settings import of_recording
from probes.halves import half_of
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import FEWEST, classes_of
from probes.resampling import bootstrap_weights, units_of
from probes.results import ProbeResult
from probes.scored import with_q
from workbench.argument_checks import check_recording
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent, tracked
from workbench.recording.recording import Recording
from workbench.typing import Bool, Float, Int

RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class DirectionTransfer(ProbeResult):
    """One row per cell: the base's direction of a class, brought to the tuned model.

    ``score``: area under the ROC curve of the tuned model's held-out states along the transferred direction, with its
    interval over prompts; ``control``: the mean area where the map was fitted on prompts exchanged between the models,
    ``q`` of a larger one; ``own``: the area along the tuned model's own direction, ``source``: of the base's states
    along its own; ``raw``: along the base's direction as it is (NaN where widths differ); ``cosine``: of transferred
    and own direction; ``fit``: share of the tuned states' variance that the map explains on held-out prompts.
    """

    positive: str
    resampled: str

    title: ClassVar[str] = "Directions carried from base to tuned model"
    unit: ClassVar[str] = "area under the curve, transferred direction"

    def figure(self) -> go.Figure:
        """The area by cell, the control as a cross."""
        names = self.table["site"] + " " + self.table["layer"].astype(int).astype(str)
        return labelled_points(self.table.assign(cell=names), "cell", title=self.title, unit=self.unit)

    def summary(self) -> str:
        best = self.table.sort_values("score", kind="stable").iloc[-1]
        return (
            f"{self.positive!r}: best at {best['site']} of layer {best['layer']:.0f}, area {best['score']:.2f} "
            f"[{best['low']:.2f}, {best['high']:.2f}] along the transferred direction (exchanged map "
            f"{best['control']:.2f}), own direction {best['own']:.2f}, untransferred {best['raw']:.2f}; cosine with "
            f"the own {best['cosine']:.2f}, the map explains {best['fit']:.2f} of the states; over {self.resampled}. "
            f"Control: {self.control}."
        )


@method(
    "direction-transfer",
    group="representation",
    question="Does a direction of one model mean the same in another, once a map between them is known?",
    papers=("PreciseControl: Enhancing Text-To-Image Diffusion Models with Fine-Grained Attribute Control",),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",), per_class=FEWEST),
    cost="one forward pass of each model; a regression per cell and draw",
    example="--labels topic",
)
def direction_transfer(
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    ridge: float = 0.1,
    draws: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> DirectionTransfer:
    """Fit a linear map from the base's states to the tuned model's, and send the base's difference of means through it.

    PreciseControl maps the disentangled space of one image model into the token embeddings of another, so that edit
    directions of the first steer the second. Carried over is the map between two models' states and the test of a
    direction behind it; the second model may be the tuned one or any other that reads the same prompts. Map and
    directions are fitted on one half of the prompts (whole groups); areas are told on the other half.

    Args:
        recording: Both models on labelled prompts; widths may differ.
        labels: The class of each prompt; by default the column label. Of more than two the last in sorted order is told
            from the others.
        ridge: L2 penalty of the map, in mean squared sizes of the base's states.
        draws: Maps fitted on exchanged prompts.
        seed: Of halves, exchanges and resamples.

    Returns:
        A :class:`DirectionTransfer`. A base against itself transfers wholly: its area is its own.

    Raises:
        UserError: One class, too few rows or groups, or a recording without both models or layers.
    """
    check_recording(recording)
    rows = PromptRows.of(recording)
    y, names = classes_of(rows.labels(labels))
    positive = y == len(names) - 1
    fit = parted(rows.clusters, positive, seed)
    bar = progress or Silent()
    bar.start("transfer", n_readings(recording, rows))
    lines = []
    for own, sides in tracked(cells_of(recording, rows), bar):
        for number, cell in enumerate(own):
            states = {role: side[number].double().numpy() for role, side in sides.items()}
            lines.append({**cell, **_line(states, positive, fit, rows.clusters, (ridge, draws, seed))})
    bar.finish()
    if not lines:
        raise UserError("The recording has no site of a layer: record resid_post, z, mlp_out or another one.")
    return DirectionTransfer(
        table=with_q(lines),
        control=f"maps fitted on prompts exchanged between the models ({draws} draws)",
        provenance=of_recording("direction_transfer", recording, ("base", "tuned"), seed),
        positive=names[-1],
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def parted(
    clusters: Int[np.ndarray, " row"], positive: Bool[np.ndarray, " row"], seed: int
) -> Bool[np.ndarray, " row"]:
    """True at the rows to fit on: half of the groups, with rows of both classes on either side."""
    for draw in range(100):
        inside = half_of(clusters, seed + draw)
        if all(0 < positive[side].sum() < side.sum() for side in (inside, ~inside)):
            return inside
    raise UserError("The groups do not split into two halves that hold both classes: give more groups of each class.")


def mapped(
    before: Float[np.ndarray, "row d"], after: Float[np.ndarray, "row e"], directions: Float[np.ndarray, "k d"],
    ridge: float,
) -> Float[np.ndarray, "k e"]:  # fmt: skip
    """``directions`` through the ridge regression of centred ``after`` on centred ``before``."""
    x, z = before - before.mean(0), after - after.mean(0)
    gram = x @ x.T
    inner = np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), z)
    return directions @ x.T @ inner


def area(values: Float[np.ndarray, " row"], positive: Bool[np.ndarray, " row"], times: np.ndarray) -> np.ndarray:
    """[draw] area under the ROC curve for every weighting of the rows; NaN where a class has no weight."""
    own, other = values[positive], values[~positive]
    wins = (own[:, None] > other) + 0.5 * (own[:, None] == other)
    first, second = times[:, positive], times[:, ~positive]
    weight = first.sum(1) * second.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((first @ wins) * second).sum(1) / weight)


def _contrast(states: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return states[positive].mean(0) - states[~positive].mean(0)


def _line(
    states: dict[str, np.ndarray], positive: np.ndarray, fit: np.ndarray, clusters: np.ndarray,
    settings: tuple[float, int, int],
) -> dict[str, float]:  # fmt: skip
    ridge, draws, seed = settings
    base, tuned = states["base"], states["tuned"]
    own = {role: _contrast(state[fit], positive[fit]) for role, state in states.items()}
    moved = mapped(base[fit], tuned[fit], own["base"][None], ridge)[0]
    labels, held = positive[~fit], ~fit
    count = int(held.sum())
    times = np.concatenate([np.ones((1, count)), bootstrap_weights(count, RESAMPLES, seed, clusters[held])])
    interval_area = area(tuned[held] @ moved, labels, times)
    random = np.random.default_rng(seed)
    wrong = [
        mapped(base[fit], tuned[fit][random.permutation(int(fit.sum()))], own["base"][None], ridge)[0]
        for _ in range(draws)
    ]
    chance = np.array([area(tuned[held] @ direction, labels, times[:1])[0] for direction in wrong])
    low, high = np.nanquantile(interval_area[1:], (0.025, 0.975))
    said = mapped(base[fit], tuned[fit], base[held] - base[fit].mean(0), ridge)
    centred = tuned[held] - tuned[fit].mean(0)
    same = base.shape[1] == tuned.shape[1]
    size = np.linalg.norm(moved) * np.linalg.norm(own["tuned"])
    return {
        "score": float(interval_area[0]), "low": float(low), "high": float(high),
        "control": float(chance.mean()) if draws else float("nan"),
        "p": float((1 + (chance >= interval_area[0] - 1e-12).sum()) / (1 + draws)),
        "own": float(area(tuned[held] @ own["tuned"], labels, times[:1])[0]),
        "source": float(area(base[held] @ own["base"], labels, times[:1])[0]),
        "raw": float(area(tuned[held] @ own["base"], labels, times[:1])[0]) if same else float("nan"),
        "cosine": float(moved @ own["tuned"] / size) if size else float("nan"),
        "fit": float(1 - ((centred - said) ** 2).sum() / max((centred**2).sum(), 1e-30)), "n": int(held.sum()),
    }  # fmt: skip
