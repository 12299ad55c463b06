"""What each kind of step does. Everything is a call of a public function of probes or behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

import probes
from probes.cells import label
from tunescope.experiments import inline, steps
from tunescope.experiments.materials import Materials
from tunescope.experiments.recipes import RecipeBuilder, Results, found_in
from tunescope.experiments.step_folder import ACTIVATIONS, Outcome, metric_rows
from workbench.errors import UserError, unknown_name
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
    result = _localized(step, bench)
    return Outcome(result.summary(), result.frame(), _best(result), result)


def _record(step: steps.Record, bench: Bench) -> Outcome:
    recording = record(
        bench.pair, bench.rows(step.prompts), step.sites, layers=step.layers, positions=step.positions,
        store=bench.folder / ACTIVATIONS, new_tokens=step.new_tokens, progress=bench.progress,
    )  # fmt: skip
    summary = f"{len(recording)} rows of {recording.n_prompts} prompts at {len(recording.sites)} sites"
    return Outcome(summary, difference_table(recording), metric_rows([]))


def _localized(step: Any, bench: Bench) -> Any:
    pair, seed, bar = bench.pair, bench.seed, bench.progress
    match step:
        case steps.Weights():
            return probes.weight_delta(pair, k=step.k, progress=bar)
        case steps.Retrieval():
            return _retrieval(step, bench)
        case steps.Components():
            return probes.component_masking(
                pair, {title: bench.rows(name) for title, name in step.desiderata.items()}, step.position,
                heads=step.heads, penalties=step.penalties, epochs=step.epochs, seed=seed, progress=bar, **step.options,
            )  # fmt: skip
    rows = bench.rows(step.prompts)
    match step:
        case steps.Activations():
            recording = _recording(step, bench, step.sites, positions=step.positions)
            return probes.activation_delta(
                recording, components=step.components, model=pair.tuned, seed=seed, progress=bar
            )
        case steps.Heads():
            layers = {} if step.layers is None else {"layers": step.layers}
            return probes.patching(
                pair,
                rows,
                "heads",
                what=step.what,
                metric=step.metric,
                seed=seed,
                progress=bar,
                **layers,
                **step.options,
            )
        case steps.HeadProbes():
            recording = _recording(step, bench, ["z"], positions=step.positions)
            labels = None if step.label is None else _column(_recorded_rows(step, bench), step.label)
            return probes.head_probe(recording, labels, role=step.role, folds=step.folds, seed=seed, progress=bar)
        case steps.Skills():
            ood = None if step.ood is None else bench.rows(step.ood)
            return probes.graft(
                pair, rows, method=step.method, level=step.level, sparsity=step.sparsity, ood=ood, seed=seed,
                progress=bar, **step.options,
            )  # fmt: skip
        case steps.Experts():
            return _experts(step, bench)
        case steps.Switching():
            return _switching(step, bench)
        case steps.Knob():
            return probes.find_knob(
                pair, rows, layers=step.layers, seed=seed, progress=bar,
                training=probes.KnobTraining(rank=step.rank, steps=step.steps),
                setup=probes.KnobSetup(search_pairs=step.search_pairs, **step.options),
            )  # fmt: skip
        case steps.Concepts():
            return _concepts(step, bench)
    return _other(step, bench)


def _other(step: steps.Probe, bench: Bench) -> Any:
    """A probe by name; its options were checked when the experiment was read."""
    call = getattr(probes, step.call)
    given: dict[str, Any] = {option: bench.rows(name) for option, name in step.sets.items()}
    given |= {} if step.call in steps.QUICK else {"progress": bench.progress}
    return call(_within(step, bench), bench.rows(step.prompts), seed=bench.seed, **given, **step.options)


def _within(step: Any, bench: Bench) -> Any:
    """Both models, or the one that the step asks for."""
    return bench.pair if step.within == "pair" else bench.pair.models[step.within]


def _experts(step: steps.Experts, bench: Bench) -> Any:
    rows = bench.rows(step.prompts)
    labels = None if step.label is None else _column(rows, step.label)
    tokens = {"exclude": _all_but_last} if step.positions == "last" else {}
    return probes.expert_map(
        _within(step, bench), rows, labels, target=step.target, seed=bench.seed, progress=bench.progress,
        **tokens, **step.options,
    )  # fmt: skip


def _all_but_last(ids: torch.Tensor) -> torch.Tensor:
    """True [pos] for the tokens that do not count."""
    return torch.arange(len(ids)) < len(ids) - 1


def _switching(step: steps.Switching, bench: Bench) -> Any:
    ranking = step.ranking
    if isinstance(ranking, inline.FirstOf):
        ranking = found_in(ranking, ("ExpertMap",), bench.materials, bench.results).ranking(ranking.first)
    first = step.begins.split()
    return probes.switching_curve(
        bench.pair, bench.rows(step.prompts), lambda response, _: response.split()[: len(first)] == first, ranking,
        step.counts, step.mode, seed=bench.seed, progress=bench.progress, **step.options,
    )  # fmt: skip


def _concepts(step: steps.Concepts, bench: Bench) -> Any:
    from workbench.engine.sites import resolve_layers

    recording = _recording(step, bench, ["resid_post"], layers=[step.layer], positions="all")
    return probes.concept_directions(
        recording, step.method, layer=resolve_layers(step.layer, bench.pair.tuned.n_layers)[0], k=step.k,
        dictionary=None if step.dictionary is None else bench.materials.path(step.dictionary),
        model=bench.pair.tuned, seed=bench.seed,
    )  # fmt: skip


def _retrieval(step: steps.Retrieval, bench: Bench) -> Any:
    path = bench.materials.path(step.haystack)
    if not path.is_file():
        raise UserError(f"There is no file {path}: check haystack.")
    needles = [probes.Needle(question=one["question"], text=one["text"]) for one in step.needles]
    text = path.read_text(encoding="utf-8")
    behind = {} if step.template is None else {"template": step.template}
    trials = probes.needle_trials(text, needles, bench.pair.tokenizer, lengths=step.lengths, **behind)
    return probes.retrieval_heads(bench.pair, trials, seed=bench.seed, progress=bench.progress)


def _recording(step: Any, bench: Bench, sites: list[str], **options: Any) -> Any:
    """The recording of the step it names, else its own, in memory."""
    if step.record is not None:
        return bench.results(step.record)
    return record(bench.pair, bench.rows(step.prompts), sites, progress=bench.progress, **options)


def _recorded_rows(step: Any, bench: Bench) -> Prompts:
    """The prompts behind the recording that a step reads."""
    recorded: Any = step if step.record is None else bench.experiment.steps[step.record]
    return bench.rows(recorded.prompts)


def _column(rows: Prompts, name: str) -> list[Any]:
    known = {column for row in rows for column in row.as_dict()}
    if name not in known:
        raise unknown_name("column", name, known)
    return [row.as_dict().get(name) for row in rows]


def _best(result: Any) -> pd.DataFrame:
    """The first cells of the map as rows of the long table."""
    n = result.provenance.n_prompts or float("nan")
    return metric_rows([
        {"of": label(row), "metric": "score", "estimate": row["score"], "n": n,
         **{name: row[name] for name in ("low", "high", "control", "q")}}
        for row in result.frame().head(TOP).to_dict("records")
    ])  # fmt: skip
