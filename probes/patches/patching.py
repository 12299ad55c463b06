"""Activation patching: which heads, sites and positions carry the difference between two runs.

Within a model: a clean and a corrupted prompt (Vig et al. 2020; Wang et al. 2023). Across models: the same prompt in
base and tuned (cross-model activation patching, Prakash et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from probes.call_settings import call_settings
from probes.cells import mean_of_others
from probes.patches.cells import HEADS, Cell, all_cells, kinds_of, places_of
from probes.patches.fast_pass import agreement
from probes.patches.metrics import check_metric
from probes.patches.result import Patching
from probes.patches.search import Measured, Scorer, Search
from probes.patches.settings import PatchOptions, checked_options
from probes.patches.task import Task, check_lengths, make_task
from probes.results import Provenance
from workbench.argument_checks import read_options
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError, unknown_name
from workbench.methods import Needs, method
from workbench.prompts import Prompts


@method(
    "heads",
    gives=("ranked heads",),
    group="heads",
    question="Which attention heads carry the change?",
    fixed={"sites": "heads"},
    papers=("Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking",),
    needs=Needs(columns=("answer",), wants={"distractor": "metric=logit_diff"}, instead="metric='kl' needs no answers"),
    cost="one suffix of a forward pass per head and prompt",
    example="",
)
@method(
    "layers",
    group="layers",
    question="At which layers and positions does the residual stream carry the change?",
    fixed={"sites": "resid_post"},
    needs=Needs(columns=("answer",), wants={"distractor": "metric=logit_diff"}, instead="metric='kl' needs no answers"),
    cost="one suffix of a forward pass per layer, position and prompt",
    example="--positions last",
)
@method(
    "mlps",
    group="layers",
    question="Which MLPs carry the change?",
    fixed={"sites": "mlp_out"},
    needs=Needs(columns=("answer",), wants={"distractor": "metric=logit_diff"}, instead="metric='kl' needs no answers"),
    cost="one suffix of a forward pass per MLP, position and prompt",
    example="--positions last",
)
def patching(
    subject: Any,
    prompts: Any,
    sites: str | Sequence[str] = "heads",
    source: str | None = None,
    target: str | None = None,
    what: Literal["z", "write"] | str = "write",
    metric: Literal["logit_diff", "prob", "kl"] | str = "logit_diff",
    **options: Any,
) -> Patching:
    """Put activations of the source run into the target run, one cell at a time, and measure the last position.

    ``subject``: a pair (``source="tuned"``, ``target="base"`` by default, or the reverse) or a model (``"clean"`` into
    ``"corrupted"``, or the reverse: noising), whose prompts have a ``contrast``. ``sites``: ``"heads"`` or any of
    resid_pre, resid_mid, resid_post, attn_out, mlp_out. ``what``: a head is patched as z or as its write W_O z; they
    differ when the output projection was tuned. ``metric``: logit_diff, prob or kl.
    ``options``: see :class:`PatchOptions`.

    Raises :class:`UserError` when the two runs do not differ in the metric (nothing to localize; both numbers are
    given), for contrasts of another length, and for missing answers.

    Args:
        source: The run that activations are taken from: tuned or base of a pair, clean or corrupted of a model.
        target: The run that they are put into.
        what: A head is patched as z, or as its write W_O z; they differ when the output projection was tuned.
    """
    settings = checked_options(read_options(PatchOptions, options))
    kinds = kinds_of(sites, what)
    whole = settings.answer_tokens == "all"
    check_metric(metric, has_answers=True, has_distractors=True, whole=whole)
    task = _with_inputs(make_task(subject, prompts, source, target, whole=whole), settings)
    check_metric(metric, has_answers=task.answers is not None, has_distractors=task.distractors is not None)
    positions = settings.positions if settings.positions is not None else ("all" if kinds[0] in HEADS else "each")
    check_lengths(task, from_the_end=positions not in ("all", "each"))
    shortest = [min(len(ids), len(other)) for ids, other in zip(task.source_ids, task.target_ids, strict=True)]
    places = places_of(positions, shortest)
    cells = all_cells(task.target, kinds, resolve_layers(settings.layers, task.target.n_layers), places)
    behind = 0 if task.whole is None else task.whole.width
    search = Search(task, [cell.before(behind) for cell in cells], metric, settings)
    measured = search.run()
    score = Scorer(measured.effects, search.gap(), search.clusters, settings)
    table = _table(cells, score, measured, task)
    together = search.together(table, score) if kinds[0] in HEADS and places == [None] else None
    return Patching(
        table=table,
        control=f"the mean of {settings.controls} random other cells of the map"
        + ("" if together is None else "; together: as many random heads of the same layers"),
        provenance=_provenance(
            search,
            call_settings(
                settings, prompts=Prompts.of(prompts), sites=sites, what=what, metric=metric, positions=positions
            ),
        ),
        source=task.names[0],
        target=task.names[1],
        metric=metric,
        normalised=settings.normalise,
        source_value=score.value_of(search.source),
        target_value=score.value_of(search.target),
        effects=measured.effects,
        together=together,
        agreement=None if measured.estimate is None else agreement(table),
        tokens=_tokens(task),
    )


def _with_inputs(task: Task, settings: PatchOptions) -> Task:
    if settings.inputs not in ("source", "target"):
        raise unknown_name("kind of inputs", settings.inputs, ("source", "target"))
    if settings.inputs == "target" and task.source is task.target:
        raise UserError(
            "inputs='target' asks what other weights make of the same inputs, but both runs are of one model: patch "
            "across a pair, or leave inputs='source'."
        )
    return replace(task, on_target_inputs=settings.inputs == "target")


def _table(cells: Sequence[Cell], score: Scorer, measured: Measured, task: Task) -> pd.DataFrame:
    bounds = score.of(score.effects)
    mean = bounds.estimate
    columns: dict[str, Any] = {"layer": [cell.layer for cell in cells]}
    if cells[0].head is not None:
        columns["head"] = [cell.head for cell in cells]
    else:
        columns["module"] = [cell.kind for cell in cells]
    if any(cell.positions is not None for cell in cells):
        columns["position"] = [_shown(cell, task) for cell in cells]
    columns |= {
        "score": mean, "low": bounds.low, "high": bounds.high,
        "control": mean_of_others(mean, score.settings.controls, score.settings.seed), "q": score.q(),
        "effect": score.effects.mean(0), "exact": measured.exact,
    }  # fmt: skip
    if score.gap is not None:
        columns["restored"] = mean if task.clean_is_source else 1.0 - mean
    if measured.estimate is not None:
        columns["attribution"] = measured.estimate / (1.0 if score.gap is None else score.gap.mean())
        columns["confirmed"] = measured.confirmed
    return pd.DataFrame(columns)


def _shown(cell: Cell, task: Task) -> int:
    place = (cell.positions or (-1,))[0]
    return place + task.lengths[0] if len(set(task.lengths)) == 1 else place


def _tokens(task: Task) -> list[str] | None:
    if len(set(task.lengths)) > 1 or task.target.tokenizer is None:
        return None
    return [task.target.tokenizer.decode([token]) for token in task.target_ids[0]]


def _whole(passes: float) -> int:
    """Parts of passes add up to a little more or less than what they are."""
    return math.ceil(round(passes, 6))


def _provenance(search: Search, settings: dict[str, Any]) -> Provenance:
    options, task = search.settings, search.task
    return Provenance.of(
        "patching",
        task.models,
        task.prompts,
        seed=options.seed,
        device=str(task.target.device),
        forward_passes=_whole(search.runs.passes),
        backward_passes=_whole(search.runs.backward),
        settings={
            **settings, "estimated_by": None if search.method == "exact" else search.method,
            "source": task.names[0], "target": task.names[1], "frozen": "nothing: later layers recompute",
            "clashing_answers_dropped": task.dropped,
            "read_to_the_difference": task.read_on, "incorrect_dropped": int((~search.usable).sum()),
            "whole_forward_passes": not search.shortcuts,
        },
    )  # fmt: skip
