"""The probe suite: what can be read from frozen states of base and tuned model, compared cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import of_recording
from probes.effects.panel import interval_of
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import FEWEST, Kind, classes_of, dealt_folds, held_out_right
from probes.resampling import cluster_means, shuffled_labels, units_of
from probes.results import ProbeResult
from probes.scored import paired_p, with_q
from workbench.argument_checks import check_recording
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As, Within
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent
from workbench.recording.recording import Recording
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.shares import share_intervals
from workbench.stats.tests import paired_permutation
from workbench.typing import Bool, Int

Outcome = Literal["gained", "lost", "equivalent", "undecided"]


@dataclass(frozen=True, kw_only=True)
class ProbeSuite(ProbeResult):
    """Held-out accuracy of a probe on every cell, of both models.

    ``table``: site, layer (head, position), ``score`` = tuned - base accuracy, paired by prompt, with its interval, p
    and q; ``base`` and ``tuned`` accuracies with their intervals; ``control`` = the same difference on the control
    task; ``selectivity_base``, ``selectivity_tuned``: accuracy less that on the control task; ``readable``: the
    models (both, base, tuned, neither) whose selectivity has its whole interval above 0; ``equivalence_p``: of two
    one-sided tests against the margin; ``outcome``: gained, lost (q < 0.05), equivalent (both within the margin) or
    undecided. ``levels``: the same by values of the column ``by``. ``examples``: how many rows each class has.
    """

    classes: tuple[str, ...]
    chance: float
    """Share of the largest class."""
    kind: str
    margin: float
    levels: pd.DataFrame
    resampled: str
    decidable: bool = True
    """Whether there are units enough that a cell without any change would pass the margin."""

    title: ClassVar[str] = "Probe suite"
    unit: ClassVar[str] = "change of held-out accuracy"

    def figure(self) -> go.Figure:
        """The change of accuracy by layer, the control as a cross."""
        names = self.table["layer"].astype(int).astype(str)
        for column in ("head", "position", "site"):
            if column in self.table and self.table[column].nunique() > 1:
                names = names + " " + self.table[column].astype(str)
        return labelled_points(self.table.assign(cell=names), "cell", title=self.title, unit=self.unit)

    def summary(self) -> str:
        counts = self.table["outcome"].value_counts()
        said = ", ".join(f"{counts[name]} {name}" for name in ("gained", "lost", "equivalent", "undecided")
                         if name in counts)  # fmt: skip
        best = {role: self.table.iloc[int(self.table[role].to_numpy().argmax())] for role in ("base", "tuned")}
        tops = "; ".join(
            f"best of {role}: {row['site']} of layer {row['layer']:.0f}, {row[role]:.1%} (selectivity "
            f"{row[f'selectivity_{role}']:+.1%})" for role, row in best.items()
        )  # fmt: skip
        unread = int((self.table["readable"] == "neither").sum()) if "readable" in self.table else 0
        warning = (
            f"; in {unread} of {len(self.table)} cells the control task is told as well as the labels, in both models: "
            "nothing is shown to be readable there" if unread else ""
        )  # fmt: skip
        narrow = "" if self.decidable else ", too narrow for so few: a cell without any change is undecided too"
        return (
            f"{len(self.classes)} classes from {len(self.table)} cells, {self.kind} probe: {said} (margin "
            f"{self.margin:g}{narrow}); {tops}; largest class {self.chance:.1%}{warning}; over {self.resampled}. "
            f"Control: {self.control}"
        )


@method(
    "probe-suite",
    group="representation",
    question="What can be read from the states of each model, and did tuning add or lose any of it?",
    papers=(
        "Towards Probing Contact Center Large Language Models",
        "One Adapter for All Programming Languages? Adapter Tuning for Code Search and Summarization",
    ),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",), per_class=FEWEST),
    cost="one forward pass of each model; a probe per cell, class and fold",
    example="--labels topic --by language",
)
def probe_suite(  # noqa: PLR0913 (a public call; all but two by keyword)
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    kind: Kind = "linear",
    types: Annotated[Sequence[Any] | None, As("column")] = None,
    by: Annotated[Sequence[Any] | None, As("column")] = None,
    spans: Annotated[Sequence[Any] | None, As("spans")] = None,
    by_position: bool = False,
    margin: Annotated[float, Within(0, 1)] = 0.05,
    folds: int = 5,
    ridge: float = 1.0,
    draws: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeSuite:
    """Probes of any site and any number of classes on both models, compared row by row.

    The control task (Hewitt & Liang 2019) gives every type of input a label at random and asks the same probe for it:
    what it gets there it could memorise, and accuracy beyond it (selectivity) is in the states. A change is tested
    against 0 by flipping signs over prompts, and against the margin by two one-sided tests, so that "no change" and "a
    loss" are findings (contact centre models; forgetting in the representation, by layer and by language).

    Args:
        recording: Both models on the labelled prompts, any sites; heads of z are cells of their own.
        labels: The class of each prompt; by default the column label. Two or more classes.
        kind: linear, or mlp: 32 tanh units on the 64 leading principal axes.
        types: The type of each prompt for the control task (the word it is about, say), by default its group, else
            itself.
        by: A column, such as language, whose values are reported by themselves.
        spans: Where in each prompt is looked: a column that holds a text of it or two numbers of characters, or
            role:user; in Python token spans, as ``row_spans`` gives them. By default everything that was recorded.
        by_position: A cell for each recorded place from the prompt's end, instead of the mean over them.
        margin: A change of accuracy that would not matter.
        folds: Folds of the cross-validation; a group is never in two.
        draws: Control tasks.
        seed: Of folds, control tasks and intervals.

    Returns:
        A :class:`ProbeSuite`. A base against itself changes nowhere.

    Raises:
        UserError: Labels of one class, too few rows of one, too few groups, or a recording without both models.
    """
    check_recording(recording)
    rows = PromptRows.of(recording, spans)
    y, names = classes_of(rows.labels(labels))
    clusters = rows.clusters
    kinds = (
        clusters if types is None else np.unique([str(label) for label in rows.labels(types)], return_inverse=True)[1]
    )
    tasks = np.concatenate([y[None], control_tasks(y, kinds, draws, seed)])
    dealt = dealt_folds(folds, clusters, y, seed)
    hits_of: dict[str, list[np.ndarray]] = {"base": [], "tuned": []}
    cells: list[dict[str, Any]] = []
    bar = progress or Silent()
    bar.start("probe suite", n_readings(recording, rows, by_position))
    split = np.repeat(dealt[None], len(tasks), 0)
    for own, sides in cells_of(recording, rows, by_position):
        cells += own
        for role, features in sides.items():
            hits_of[role].append(held_out_right(features, tasks, split, kind=kind, ridge=ridge, seed=seed))
        bar.advance()
    bar.finish()
    if not cells:
        raise UserError("The recording has no site of a layer to probe: record resid_post, z, mlp_out or another one.")
    right = {role: np.concatenate(parts) for role, parts in hits_of.items()}
    table = suite_table(cells, right, clusters, margin, seed)
    levels = pd.DataFrame() if by is None else _levels(cells, right, rows.labels(by), clusters, seed)
    return ProbeSuite(
        table=table,
        control=f"the same probes on {draws} control tasks: labels at random for each type of input",
        provenance=of_recording("probe_suite", recording, ("base", "tuned"), seed),
        classes=tuple(names),
        chance=float(np.bincount(y).max() / len(y)),
        kind=kind,
        margin=margin,
        levels=levels,
        resampled=units_of(clusters),
        decidable=bool(equivalence_p(np.zeros((len(np.unique(clusters)), 1)), margin, seed)[0] < 0.05),
    )  # fmt: skip


def control_tasks(
    y: Int[np.ndarray, " row"], types: Int[np.ndarray, " row"], draws: int, seed: int
) -> Int[np.ndarray, "draw row"]:
    """Labels at random for every type, as often as the true ones where each row is a type of its own."""
    if len(np.unique(types)) == len(y):
        return shuffled_labels(y, draws, seed + 1)
    random = np.random.default_rng(seed + 1)
    numbers = np.unique(types, return_inverse=True)[1]
    shares = np.bincount(y) / len(y)
    tasks = np.stack([random.choice(len(shares), int(numbers.max()) + 1, p=shares)[numbers] for _ in range(draws)])
    return tasks


def suite_table(
    cells: Sequence[dict[str, Any]],
    right: dict[str, Bool[np.ndarray, "cell task row"]],
    clusters: Int[np.ndarray, " row"],
    margin: float,
    seed: int,
) -> pd.DataFrame:
    """The table from hits: task 0 is the true one, the rest are control tasks."""
    hits = {role: hit[:, 0].astype(np.float64).T for role, hit in right.items()}  # [row, cell]
    change = hits["tuned"] - hits["base"]
    intervals = mean_intervals(change, clusters=clusters, seed=seed)
    p = paired_permutation(cluster_means(change, clusters), seed=seed).p
    equal = equivalence_p(cluster_means(change, clusters), margin, seed)
    control = {role: hit[:, 1:].mean((1, 2)) for role, hit in right.items()}
    table = pd.DataFrame(list(cells)).assign(
        score=intervals.estimate, low=intervals.low, high=intervals.high, control=control["tuned"] - control["base"],
        p=p, q=q_values(p), equivalence_p=equal,
    )  # fmt: skip
    for role, own in hits.items():
        band = share_intervals(own, clusters=clusters, seed=seed)
        table[role], table[f"{role}_low"], table[f"{role}_high"] = band.estimate, band.low, band.high
        table[f"selectivity_{role}"] = band.estimate - control[role]
    table["readable"] = _readable(right, clusters, seed)
    return table.assign(outcome=[_outcome(row) for row in table.to_dict("records")], n=len(clusters))


def _readable(right: dict[str, Bool[np.ndarray, "cell task row"]], clusters: np.ndarray, seed: int) -> list[str]:
    """Per cell the models whose probe tells more labels than control labels, by the whole interval."""
    lows = {
        role: mean_intervals((hit[:, 0] - hit[:, 1:].mean(1)).T, clusters=clusters, seed=seed).low
        for role, hit in right.items()
    }
    names = {(True, True): "both", (True, False): "base", (False, True): "tuned", (False, False): "neither"}
    return [names[bool(base > 0), bool(tuned > 0)] for base, tuned in zip(lows["base"], lows["tuned"], strict=True)]


def _outcome(row: dict[Any, Any]) -> Outcome:
    if row["q"] < 0.05:
        return "gained" if row["score"] > 0 else "lost"
    return "equivalent" if row["equivalence_p"] < 0.05 else "undecided"


def equivalence_p(change: np.ndarray, margin: float, seed: int, draws: int = 2_000) -> np.ndarray:
    """[cell] the larger p of two one-sided bootstrap tests that the mean change [unit, cell] lies within the margin.

    As many units as there are are also thought of with one that changed by 1 either way, so that units which all stay
    the same prove no more than their number allows.
    """
    n = len(change)
    times = np.random.default_rng(seed).multinomial(n + 1, np.full(n + 1, 1 / (n + 1)), size=draws) / (n + 1)
    low, high = (times @ np.concatenate([change, np.full((1, change.shape[1]), side)]) for side in (-1.0, 1.0))
    return np.maximum((1 + (low <= -margin).sum(0)) / (1 + draws), (1 + (high >= margin).sum(0)) / (1 + draws))


def _levels(
    cells: Sequence[dict[str, Any]],
    right: dict[str, np.ndarray],
    values: Sequence[Any],
    clusters: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Accuracy of both models and their change for each value of a column."""
    of = np.array([str(value) for value in values])
    lines = []
    for level in dict.fromkeys(of.tolist()):
        own = of == level
        for number, cell in enumerate(cells):
            base, tuned = (right[role][number, 0, own].astype(float) for role in ("base", "tuned"))
            change = interval_of(tuned - base, clusters[own], seed)
            lines.append({
                **cell, "group": level, "score": change.estimate, "low": change.low, "high": change.high,
                "base": base.mean(), "tuned": tuned.mean(), "p": paired_p(tuned - base, clusters[own], seed=seed),
                "n": int(own.sum()),
            })  # fmt: skip
    return with_q(lines)
