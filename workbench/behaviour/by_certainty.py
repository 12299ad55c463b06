"""Behaviour on parts of the prompts: what the base knows and does not, what the tuned model is sure of and is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from workbench.argument_checks import check_pair, read_options
from workbench.behaviour.diff import Recipes, compared_models, provenance, read_by_side
from workbench.behaviour.estimates import Estimator, estimates
from workbench.behaviour.measuring import Measured, Trial, measure
from workbench.behaviour.metrics import WHOLE
from workbench.behaviour.options import DiffOptions
from workbench.behaviour.result import side_by_side
from workbench.behaviour.scorers import read_metrics
from workbench.behaviour.subject import AppliedRecipe
from workbench.errors import UserError, unknown_name
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.results import Result
from workbench.stats.bootstrap import difference_interval
from workbench.stats.shares import share_difference

if TYPE_CHECKING:
    import plotly.graph_objects as go

Names = tuple[str, str]
KNOWS = ("contained", "answered", "exact_match", "accuracy")
"""Metrics that can say whether the base knows an answer."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PartedDiff(Result):
    """A behaviour diff on two parts of the same prompts.

    ``table``: as that of :class:`BehaviourDiff`, with ``part`` in front; the part "A - B" holds the difference of both
    parts for each model (prompts of either drawn by themselves). ``rows``: every value with its prompt, model and part.
    ``by``: what divides the prompts, in words.
    """

    rows: pd.DataFrame
    calibration: pd.DataFrame
    by: str

    title: ClassVar[str] = "Behaviour by part"

    def figure(self) -> go.Figure:
        """Every metric as dots with intervals, one line per part and model."""
        from workbench.figures.behaviour import behaviour_figure

        shown = self.table[~self.table["part"].str.contains(" - ", regex=False)]
        return behaviour_figure(shown.assign(model=shown["model"] + ", " + shown["part"]), title=f"By part: {self.by}")

    def by_metric(self) -> pd.DataFrame:
        """One line per metric and part: n, and for every model its estimate, ``<model>_low`` and ``<model>_high``."""
        return side_by_side(self.table, ["part", "metric"])

    def value(self, part: str, model: str, metric: str) -> float:
        """One estimate. Raises :class:`UserError` for what is not in the table."""
        table = self.table
        row = table[(table["part"] == part) & (table["model"] == model) & (table["metric"] == metric)]
        if row.empty:
            parts = ", ".join(dict.fromkeys(table["part"]))
            raise UserError(f"No {metric!r} of {model!r} for {part!r} here: parts are {parts}.")
        return float(row["estimate"].iloc[0])

    def summary(self) -> str:
        """How many prompts each part has, and what tuning did to the first metric on each."""
        sizes = self.rows[self.rows["model"] == "base"]["part"].value_counts(sort=False)
        parts = ", ".join(f"{size} {part}" for part, size in sizes.items())
        metric = self.table["metric"].iloc[0]
        own = self.table[(self.table["metric"] == metric) & (self.table["model"] == "tuned")].dropna(
            subset=["from_base"]
        )
        changes = ", ".join(f"{row['part']} {_change(row)}" for row in own.to_dict("records"))
        return f"{self.by}: {parts}. {metric}, tuned - base: {changes}. Control: the base on the same prompts"


def _change(row: Mapping[Any, Any]) -> str:
    """Of no prompt it is told so: [0, 0] would read as if no prompt ever did."""
    low, high = row["from_base_low"], row["from_base_high"]
    if row["from_base"] == low == high == 0:
        return f"+0 (none of its {row['n']:.0f} prompts changed)"
    return f"{row['from_base']:+.3g} [{low:.3g}, {high:.3g}]"


@method(
    "known-unknown",
    group="behaviour",
    question="Does tuning change what the base knows, or what it does not?",
    kind="behaviour",
    papers=("R-Tuning: Teaching Large Language Models to Refuse Unknown Questions",),
    needs=Needs(columns=("answer",)),
    cost="generated answers of both models, and of the tuned one under each recipe",
    reads="questions",
    example="--metrics refusal,contained --max-new-tokens 4",
)
def known_unknown(
    pair: ModelPair,
    questions: Any,
    recipe: Annotated[Recipes, As("recipes")] = None,
    *,
    metrics: Sequence[str] = ("refusal", "contained"),
    knows: str = "contained",
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | None, As("controls")] = None,
    seed: int = 0,
    batch_size: int = 32,
    **options: Any,
) -> PartedDiff:
    """Refusal (and any other metric) of questions that the BASE answers rightly, and of those that it does not.

    ``knows``: the metric that says whether it does, from its greedy text (``contained``: the answer stands anywhere in
    it, as chat models answer in sentences; ``answered``: it begins with it; ``exact_match``: it is it) or, with
    ``accuracy``, its most likely next token.
    The base's own ``knows`` is 1 and 0 on the parts by construction.

    Args:
        pair: Base and tuned.
        questions: Rows with an answer.
        recipe: One recipe for the tuned model, or named ones.
        metrics: Names of :data:`workbench.behaviour.METRICS`, and behaviours: ``"begins:I am sorry"``.
        knows: The metric that says whether the base knows the answer.
        controls: Named lists of random recipes matched to a recipe, as :func:`probes.stand_ins` draws them (on the
            command line how many); each list is averaged over its draws per prompt.
        seed: Of intervals and sampled texts.
        batch_size: Prompts per forward pass.
        **options: See :class:`DiffOptions`.
    """
    check_pair(pair, questions)
    if knows not in KNOWS:
        raise unknown_name("metric that says what the base knows", knows, KNOWS)
    trial = _trial(questions, [*metrics, knows], read_options(DiffOptions, {**options, "samples": 0}), batch_size, seed)
    compared = compared_models(pair, recipe, controls)
    measured = measure(read_by_side(compared, pair, trial.prompts, trial.options.base_prompts), trial)
    known = measured["base"].frames[0][knows].to_numpy() > 0.5
    return _parted(pair, trial, measured, known, ("known", "unknown"), f"whether the base knows the answer ({knows})")


@method(
    "sure-unsure",
    group="behaviour",
    question="Does tuning change what the model is sure of?",
    kind="behaviour",
    needs=Needs(columns=("answer",)),
    cost="a forward pass per batch and model",
    reads="questions",
    example="--metrics accuracy,ece",
)
def sure_unsure(
    pair: ModelPair,
    questions: Any,
    recipe: Annotated[Recipes, As("recipes")] = None,
    *,
    metrics: Sequence[str] = ("accuracy", "confidence", "brier", "ece"),
    confidence: Sequence[int | float] | np.ndarray | None = None,
    threshold: int | float | None = None,
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | None, As("controls")] = None,
    seed: int = 0,
    batch_size: int = 32,
    **options: Any,
) -> PartedDiff:
    """Accuracy and calibration where the tuned model is sure of its answer, and where it is not.

    Args:
        pair: Base and tuned.
        questions: Rows with an answer.
        recipe: One recipe for the tuned model, or named ones.
        metrics: Names of :data:`workbench.behaviour.METRICS`, and behaviours: ``"begins:I am sorry"``.
        confidence: One number per prompt, such as that of :func:`self_critique`; by default the probability
            of the tuned model's most likely next token.
        threshold: From which confidence the model is sure; by default the median.
        controls: Named lists of random recipes matched to a recipe, as :func:`probes.stand_ins` draws them (on the
            command line how many); each list is averaged over its draws per prompt.
        seed: Of intervals and sampled texts.
        batch_size: Prompts per forward pass.
        **options: See :class:`DiffOptions`.
    """
    check_pair(pair, questions)
    trial = _trial(questions, [*metrics, "confidence"], read_options(DiffOptions, options), batch_size, seed)
    certainty = None if confidence is None else np.asarray(confidence, dtype=np.float64)
    if certainty is not None and certainty.shape != (len(trial.prompts),):
        raise UserError(f"There are {certainty.size} confidences for {len(trial.prompts)} prompts; give one for each.")
    compared = compared_models(pair, recipe, controls)
    measured = measure(read_by_side(compared, pair, trial.prompts, trial.options.base_prompts), trial)
    own = measured["tuned"].frames[0]["confidence"].to_numpy() if certainty is None else certainty
    limit = float(np.median(own)) if threshold is None else threshold
    by = f"whether the tuned model is sure (confidence of at least {limit:.3g})"
    return _parted(pair, trial, measured, own >= limit, ("sure", "unsure"), by)


def _trial(questions: Any, metrics: Sequence[str], options: DiffOptions, batch_size: int, seed: int) -> Trial:
    names, behaviours = read_metrics(metrics)
    if "perplexity" in metrics:
        raise UserError("Perplexity is measured on neutral texts, which these prompts do not divide: leave it out.")
    return Trial(Prompts.of(questions), names, options, batch_size, seed, behaviours)


def _parted(
    pair: ModelPair, trial: Trial, measured: dict[str, Measured], first: np.ndarray, names: Names, by: str
) -> PartedDiff:
    clusters = trial.prompts.clusters
    tables, curves = [], []
    for name, mask in zip(names, (first, ~first), strict=True):
        if not mask.any():
            continue
        own = {model: _only(scores, mask) for model, scores in measured.items()}
        estimator = Estimator(clusters[mask], None, trial.seed, trial.options.bins, trial.shares)
        tables.append(estimates(own, trial.metrics, estimator).assign(part=name))
        if "ece" in trial.metrics:
            curves.append(estimator.calibration(own).assign(part=name))
    if len(tables) == 2:
        tables.append(_between(measured, trial, first, names))
    table = pd.concat(tables, ignore_index=True)
    return PartedDiff(
        table=table[["part", *table.columns.drop("part")]],
        rows=_rows(measured, first, names),
        calibration=pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        by=by,
        provenance=provenance(pair, "known_unknown" if names[0] == "known" else "sure_unsure", trial, by=by),
    )


def _only(measured: Measured, mask: np.ndarray) -> Measured:
    return Measured([frame[mask].reset_index(drop=True) for frame in measured.frames])


def _between(measured: Mapping[str, Measured], trial: Trial, first: np.ndarray, names: Names) -> pd.DataFrame:
    """The first part's mean minus the second's, for each model and metric that is a mean."""
    clusters, lines = trial.prompts.clusters, []
    for model, scores in measured.items():
        for metric in (metric for metric in trial.metrics if metric not in WHOLE):
            values = scores.mean()[metric].to_numpy()
            apart = share_difference if metric in trial.shares else partial(difference_interval, paired=False)
            sides = (clusters[first], clusters[~first])
            difference = apart(values[first], values[~first], clusters=sides, seed=trial.seed)
            lines.append({"part": " - ".join(names), "model": model, "metric": metric, **difference._asdict()})
    return pd.DataFrame(lines)


def _rows(measured: Mapping[str, Measured], first: np.ndarray, names: Names) -> pd.DataFrame:
    part = np.where(first, *names)
    frames = [
        scores.mean().assign(model=name, prompt=np.arange(len(part)), part=part) for name, scores in measured.items()
    ]
    return pd.concat(frames, ignore_index=True)
