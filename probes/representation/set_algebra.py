"""set_algebra: whether states obey the algebra of their labels: union, intersection and difference of two prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from probes.call_settings import of_recording
from probes.representation.cells import PromptRows, cells_of, n_readings
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
from workbench.typing import Bool, Float

Operation = Literal["union", "intersection", "difference"]
OPERATIONS: tuple[Operation, ...] = ("union", "intersection", "difference")
RESAMPLES = 500
FEWEST = 3


@dataclass(frozen=True, kw_only=True)
class SetAlgebra(ProbeResult):
    """One row per cell and operation.

    ``score``: F1 (over labels and pairs) of what a read-out says of the combined state against the labels that the
    operation should leave, in the tuned model, with its interval over pairs; ``control``: against the labels of other
    pairs, ``q`` of a larger one; ``base``: of the base, ``change``, ``change_low``, ``change_high``: tuned - base;
    ``plain``: with whole states added, averaged or subtracted in place of their concepts' coordinates; ``readout``: F1
    of the read-out on single held-out prompts, the most that can be had.
    """

    labels: tuple[str, ...]
    pairs: int
    resampled: str

    title: ClassVar[str] = "Set operations on states"
    unit: ClassVar[str] = "F1 of the labels that should be left"

    def figure(self) -> go.Figure:
        """F1 by cell and operation, the control as a cross."""
        names = self.table["operation"] + " " + self.table["site"] + " " + self.table["layer"].astype(int).astype(str)
        return labelled_points(self.table.assign(cell=names), "cell", title=self.title, unit=self.unit)

    def summary(self) -> str:
        best = [self.table[self.table["operation"] == operation].sort_values("score", kind="stable").iloc[-1]
                for operation in OPERATIONS]  # fmt: skip
        said = "; ".join(
            f"{row['operation']} {row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}] at layer "
            f"{row['layer']:.0f} (other pairs {row['control']:.2f}, whole states {row['plain']:.2f}, base "
            f"{row['base']:.2f})" for row in best
        )  # fmt: skip
        return (
            f"{len(self.labels)} labels, {self.pairs} pairs: {said}; single prompts {best[0]['readout']:.2f}; over "
            f"pairs of {self.resampled}. Control: {self.control}."
        )


@method(
    "set-algebra",
    group="concepts",
    question="Do concept vectors obey the algebra of sets: union, intersection and difference of two prompts?",
    papers=("LaSO: Label-Set Operations networks for multi-label few-shot learning",),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",)),
    cost="one forward pass of each model; two regressions per cell",
)
def set_algebra(
    recording: Recording,
    sets: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    pairs: int = 200,
    ridge: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> SetAlgebra:
    """Combine the concept coordinates of two held-out states, and read the labels of what comes out.

    LaSO trains networks that make, of the features of two pictures, features with the union, intersection or difference
    of their labels. Here the operations are fixed, so that they test the concept vectors and not a network: a state's
    coordinates along the vectors (regression of states on labels) are combined by maximum, minimum, and first minus
    minimum. The read-out (regression of labels on states) and the vectors are fitted on one half of the prompts (whole
    groups); pairs are drawn from the other half.

    Args:
        recording: Both models on prompts with several labels each.
        sets: The labels of each prompt, as texts such as "sea, summer"; by default the column label.
        pairs: Pairs of held-out prompts.
        ridge: L2 penalty of both regressions, in mean squared sizes of their inputs.
        seed: Of halves, pairs and resamples.

    Returns:
        A :class:`SetAlgebra`. A base against itself changes nowhere.

    Raises:
        UserError: Fewer than two labels that enough prompts of both halves have and lack, or too few groups.
    """
    check_recording(recording)
    rows = PromptRows.of(recording)
    fit = _half(rows.clusters, seed)
    names, wanted = _labels(rows.labels(sets), fit)
    first, second = _drawn(np.flatnonzero(~fit), pairs, seed)
    bar = progress or Silent()
    bar.start("set algebra", n_readings(recording, rows))
    lines: list[dict[str, Any]] = []
    for own, sides in tracked(cells_of(recording, rows), bar):
        for number, cell in enumerate(own):
            models = {
                role: _Space.of(side[number].double().numpy(), wanted, fit, ridge) for role, side in sides.items()
            }
            lines += [{**cell, **_line(operation, models, wanted, (first, second), seed)} for operation in OPERATIONS]
    bar.finish()
    if not lines:
        raise UserError("The recording has no site of a layer: record resid_post, z, mlp_out or another one.")
    return SetAlgebra(
        table=with_q(lines),
        control="the same combined states against the labels of other pairs",
        provenance=of_recording("set_algebra", recording, ("base", "tuned"), seed),
        labels=tuple(names),
        pairs=len(first),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def combined(
    operation: Operation, first: Float[np.ndarray, "pair label"], second: Float[np.ndarray, "pair label"]
) -> Float[np.ndarray, "pair label"]:
    """The operation on coordinates (or on 0 and 1: on sets)."""
    if operation == "union":
        return np.maximum(first, second)
    shared = np.minimum(first, second)
    return shared if operation == "intersection" else first - shared


@dataclass(frozen=True)
class _Space:
    """A cell of one model: states, the concept vectors, and the read-out fitted apart from them."""

    states: Float[np.ndarray, "row d"]
    middle: Float[np.ndarray, " d"]
    vectors: Float[np.ndarray, "label d"]
    weights: Float[np.ndarray, "d label"]
    shift: Float[np.ndarray, " label"]
    cut: Float[np.ndarray, " label"]

    @classmethod
    def of(cls, states: np.ndarray, wanted: np.ndarray, fit: np.ndarray, ridge: float) -> _Space:
        x, y = states[fit], wanted[fit].astype(np.float64)
        designed = np.concatenate([np.ones((len(y), 1)), y], 1)
        fitted = np.linalg.solve(designed.T @ designed + ridge * np.diag([0.0, *np.ones(y.shape[1])]), designed.T @ x)
        centre = x.mean(0)
        gram = (x - centre) @ (x - centre).T
        inner = np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), y - y.mean(0))
        weights, shift = (x - centre).T @ inner, y.mean(0) - centre @ ((x - centre).T @ inner)
        said = x @ weights + shift
        cut = np.array([(row[on].mean() + row[~on].mean()) / 2 for row, on in zip(said.T, y.T > 0.5, strict=True)])
        return cls(states, fitted[0], fitted[1:], weights, shift, cut)

    def read(self, states: np.ndarray) -> Bool[np.ndarray, "row label"]:
        return np.asarray(states @ self.weights + self.shift > self.cut)

    def composed(self, operation: Operation, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """States that hold the combined coordinates and, beside them, the mean of what is no concept in both."""
        solve = np.linalg.pinv(self.vectors)
        own, two = ((self.states[rows] - self.middle) @ solve for rows in (first, second))
        beside = sum(self.states[rows] - self.middle - part @ self.vectors
                     for rows, part in ((first, own), (second, two)))  # fmt: skip
        return np.asarray(self.middle + combined(operation, own, two) @ self.vectors + beside / 2)

    def plain(self, operation: Operation, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whole states in place of their coordinates: sum, mean, difference about the middle."""
        own, two = (self.states[rows] - self.middle for rows in (first, second))
        made = {"union": own + two, "intersection": (own + two) / 2, "difference": own - two}[operation]
        return np.asarray(self.middle + made)


def f1(said: np.ndarray, wanted: np.ndarray, times: np.ndarray) -> Float[np.ndarray, " draw"]:
    """Over all labels together, for every weighting of the rows; 0 where nothing is said or true."""
    both, either = times @ (said & wanted).sum(1), times @ (said.sum(1) + wanted.sum(1))
    return np.divide(2 * both, either, out=np.zeros(len(times)), where=either > 0)


def _line(
    operation: Operation, models: dict[str, _Space], wanted: np.ndarray, pair: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Any]:
    first, second = pair
    target = combined(operation, *(wanted[rows].astype(float) for rows in pair)) > 0.5
    times = np.concatenate([np.ones((1, len(first))), bootstrap_weights(len(first), RESAMPLES, seed, first)])
    readings = {role: model.read(model.composed(operation, first, second)) for role, model in models.items()}
    own = {role: f1(said, target, times) for role, said in readings.items()}
    random = np.random.default_rng(seed)
    others = np.array([f1(readings["tuned"], target[random.permutation(len(target))], times) for _ in range(20)]).mean(
        0
    )
    band = [np.quantile(values[1:], (0.025, 0.975)) for values in (own["tuned"], own["tuned"] - own["base"])]
    tuned = models["tuned"]
    plain = f1(tuned.read(tuned.plain(operation, first, second)), target, times)[0]
    return {
        "operation": operation, "score": float(own["tuned"][0]), "low": band[0][0], "high": band[0][1],
        "control": float(others[0]), "p": float((1 + ((own["tuned"] - others)[1:] <= 0).sum()) / (1 + RESAMPLES)),
        "base": float(own["base"][0]), "change": float(own["tuned"][0] - own["base"][0]), "change_low": band[1][0],
        "change_high": band[1][1], "plain": float(plain),
        "readout": float(f1(tuned.read(tuned.states[first]), wanted[first], times)[0]), "n": len(first),
    }  # fmt: skip


def _half(clusters: np.ndarray, seed: int) -> np.ndarray:
    groups = np.random.default_rng(seed).permutation(np.unique(clusters))
    if len(groups) < 8:
        raise UserError(f"There are {len(groups)} prompts or groups of them: give 8 or more, half to fit on.")
    return np.isin(clusters, groups[: len(groups) // 2])


def _labels(texts: Sequence[Any], fit: np.ndarray) -> tuple[list[str], Bool[np.ndarray, "row label"]]:
    split = [{part.strip() for part in str(text).split(",") if part.strip()} for text in texts]
    every = sorted(set().union(*split))
    table = np.array([[name in members for name in every] for members in split], dtype=bool)
    enough = np.array([
        all(min(part.sum(), (~part).sum()) >= FEWEST for part in (column[fit], column[~fit])) for column in table.T
    ])  # fmt: skip
    if enough.sum() < 2:
        raise UserError(
            f"Fewer than two labels are had and lacked by {FEWEST} prompts of each half: write them as 'sea, summer' "
            "in the column label."
        )
    return [name for name, used in zip(every, enough, strict=True) if used], table[:, enough]


def _drawn(rows: np.ndarray, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    pairs_drawn = random.choice(rows, (pairs, 2))
    pairs_drawn = pairs_drawn[pairs_drawn[:, 0] != pairs_drawn[:, 1]]
    return pairs_drawn[:, 0], pairs_drawn[:, 1]
