"""What each kind of step does. Everything is a call of a public function of probes or behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probes.cells import label
from probes.results import ProbeResult
from tunescope.experiments import steps
from tunescope.experiments.call_forms import caution_of
from tunescope.experiments.materials import Materials
from tunescope.experiments.method_call import call_method
from tunescope.experiments.recipes import RecipeBuilder, Results
from tunescope.experiments.step_folder import ACTIVATIONS, Outcome, metric_rows
from workbench.errors import UserError
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.recording.job import difference_table
from workbench.recording.record_pair import record

if TYPE_CHECKING:
    import interventions as iv
    from tunescope.experiments.inputs import PairSpec
    from tunescope.experiments.schema import Experiment
    from workbench.models.pair import ModelPair

TOP = 10
"""Cells of a map that enter the long table; the step's own table has all."""


@dataclass(frozen=True)
class Bench:
    """Everything a step may use."""

    experiment: Experiment
    spec: PairSpec
    materials: Materials
    results: Results
    folder: Path
    seed: int
    progress: Progress

    @property
    def pair(self) -> ModelPair:
        """The step's models."""
        return self.materials.pair(self.spec)

    def rows(self, name: str | None) -> Prompts:
        """A set of prompts."""
        return self.materials.prompts(self.experiment, name, self.spec)

    def recipe(self, name: str) -> iv.Recipe:
        """A recipe by name, built for this cell."""
        try:
            builder = RecipeBuilder(self.pair, self.materials, self.results)
            return builder.build(self.experiment.recipes[name])
        except UserError as error:
            raise type(error)(f"recipe {name}: {error}") from error


def execute(step: Any, bench: Bench) -> Outcome:
    """Do one step. Raises :class:`UserError` for what its probe or its recipes refuse."""
    from tunescope.experiments import comparing, scoping, steering

    match step:
        case steps.Record():
            return _record(step, bench)
        case steps.Generate():
            return steering.generate(step, bench)
        case steps.Diff():
            return steering.diff(step, bench)
        case steps.Dose():
            return steering.dose(step, bench)
        case steps.Scope():
            return scoping.scope(step, bench)
        case steps.Parts():
            return scoping.parts(step, bench)
        case steps.Compare():
            return comparing.compare(step, bench)
    result = call_method(step, bench)
    caution = caution_of(result.provenance)
    summary = f"{result.summary()}. {caution}" if caution else result.summary()
    return Outcome(summary, result.frame(), _best(result), result)


def _record(step: steps.Record, bench: Bench) -> Outcome:
    recording = record(
        bench.pair, bench.rows(step.prompts), step.sites, layers=step.layers, positions=step.positions,
        store=bench.folder / ACTIVATIONS, new_tokens=step.new_tokens, progress=bench.progress,
    )  # fmt: skip
    summary = f"{len(recording)} rows of {recording.n_prompts} prompts at {len(recording.sites)} sites"
    return Outcome(summary, difference_table(recording), metric_rows([]))


def _best(result: Any) -> pd.DataFrame:
    """The first cells of the map as rows of the long table."""
    n = result.provenance.n_prompts or float("nan")
    if not isinstance(result, ProbeResult):
        return metric_rows([])
    return metric_rows([
        {"of": label(row), "metric": "score", "estimate": row["score"], "n": n,
         **{name: row[name] for name in ("low", "high", "control", "q")}}
        for row in result.frame().head(TOP).to_dict("records")
    ])  # fmt: skip
