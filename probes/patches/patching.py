"""Activation patching: which heads, sites and positions carry the difference between two runs.

Within a model: a clean and a corrupted prompt (Vig et al. 2020; Wang et al. 2023). Across models: the same prompt in
base and tuned (cross-model activation patching, Prakash et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from probes.asked import asked
from probes.cells import mean_of_others
from probes.matching import matched_cells
from probes.options import read_options
from probes.patches.attribution import attributions
from probes.patches.cells import HEADS, Cell, Patch, all_cells, kinds_of, places_of
from probes.patches.metrics import check_metric
from probes.patches.recorded import Recorded
from probes.patches.result import Patching
from probes.patches.sweep import sweep
from probes.patches.task import Task, check_lengths, make_task
from probes.resampling import cluster_means, interval
from probes.results import Provenance
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError, unknown_name
from workbench.methods import Needs, method
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.stats.bootstrap import mean_interval, mean_intervals, ratio_intervals
from workbench.stats.fdr import q_values
from workbench.stats.intervals import Intervals
from workbench.stats.tests import paired_permutation
from workbench.typing import Float


@dataclass(frozen=True)
class PatchOptions:
    """Options of :func:`patching`."""

    positions: str | int | Sequence[int] | None = None
    """``all`` at once (default for heads), ``each`` by itself (default for sites), ``last``, or numbers."""
    layers: Any = None
    inputs: Literal["source", "target"] = "source"
    """Across models: ``source`` patches what the source run computed (differences upstream included); ``target`` what
    the source's weights compute from the target's residual stream, so that heads which tuning left alone score 0."""
    method: Literal["exact", "attribution", "ig"] = "exact"
    """``attribution`` and ``ig`` estimate every cell by gradients and patch only the leading ones exactly."""
    confirm: float = 0.1
    """The share of cells, the largest estimates first, that are patched exactly."""
    ig_steps: int = 5
    """Steps of integrated gradients, for method ig."""
    normalise: bool = True
    """Score as a share of the gap between the two runs; otherwise in units of the metric."""
    only_correct: bool = False
    """Keep only prompts whose metric favours the answer in the clean (tuned) run."""
    together: int | None = None
    """How many of the best heads are patched at once, beside random ones; default a tenth, 0 for none."""
    controls: int = 10
    batch_size: int = 16
    max_tokens: int | None = None
    """Tokens that run together as copies of a batch; by default what suits the device."""
    draws: int = 1000
    seed: int = 0
    progress: Progress | None = None


@method(
    "heads",
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
    chosen = _known(read_options(PatchOptions, options))
    kinds = kinds_of(sites, what)
    task = _with_inputs(make_task(subject, prompts, source, target), chosen)
    check_metric(metric, has_answers=task.answers is not None, has_distractors=task.distractors is not None)
    positions = chosen.positions if chosen.positions is not None else ("all" if kinds[0] in HEADS else "each")
    check_lengths(task, from_the_end=positions not in ("all", "each"))
    shortest = [min(len(one), len(other)) for one, other in zip(task.source_ids, task.target_ids, strict=True)]
    places = places_of(positions, shortest)
    cells = all_cells(task.target, kinds, resolve_layers(chosen.layers, task.target.n_layers), places)
    search = _Search(task, cells, metric, chosen)
    estimate, tested, effects = search.run()
    gap = search.gap()
    score = _Scorer(effects, gap, search.clusters, chosen)
    table = _table(cells, score, estimate, tested, task)
    together = search.together(table, score) if kinds[0] in HEADS and places == [None] else None
    return Patching(
        table=table,
        control=f"the mean of {chosen.controls} random other cells of the map"
        + ("" if together is None else "; together: as many random heads of the same layers"),
        provenance=_provenance(
            search,
            asked(chosen, prompts=Prompts.of(prompts), sites=sites, what=what, metric=metric, positions=positions),
        ),
        source=task.names[0],
        target=task.names[1],
        metric=metric,
        normalised=chosen.normalise,
        source_value=score.value_of(search.source),
        target_value=score.value_of(search.target),
        effects=effects,
        together=together,
        tokens=_tokens(task),
    )


def _known(chosen: PatchOptions) -> PatchOptions:
    """The options, if method and its numbers mean something."""
    if chosen.method not in ("exact", "attribution", "ig"):
        raise unknown_name("method", chosen.method, ("exact", "attribution", "ig"))
    if not 0 <= chosen.confirm <= 1:
        raise UserError(f"confirm={chosen.confirm} is a share of the cells: give a number from 0 (none) to 1 (all).")
    if chosen.ig_steps < 1:
        raise UserError(f"ig_steps={chosen.ig_steps}: integrated gradients need at least one point on the way.")
    return chosen


def _with_inputs(task: Task, chosen: PatchOptions) -> Task:
    if chosen.inputs not in ("source", "target"):
        raise unknown_name("kind of inputs", chosen.inputs, ("source", "target"))
    if chosen.inputs == "target" and task.source is task.target:
        raise UserError(
            "inputs='target' asks what other weights make of the same inputs, but both runs are of one model: patch "
            "across a pair, or leave inputs='source'."
        )
    return replace(task, on_target_inputs=chosen.inputs == "target")


class _Search:
    """The sweeps of one call, over runs that are recorded once."""

    def __init__(self, task: Task, cells: Sequence[Cell], metric: str, chosen: PatchOptions) -> None:
        self.task, self.cells, self.metric, self.chosen = task, cells, metric, chosen
        self.runs = Recorded(task, cells, metric, chosen.batch_size)
        self.kept = np.ones(len(task.target_ids), dtype=bool)
        self.shortcuts = True

    @property
    def source(self) -> np.ndarray:
        return self.runs.source[self.kept]

    @property
    def target(self) -> np.ndarray:
        return self.runs.target[self.kept]

    @property
    def clusters(self) -> np.ndarray:
        return self.task.prompts.clusters[self.kept]

    def run(self) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
        """(mean estimate per cell or None, which cells are exact, effects [prompt, cell])."""
        cells, method = self.cells, self.chosen.method
        if method == "exact":
            effects = self.sweep([(cell,) for cell in cells])
            self._keep_correct()
            return None, np.ones(len(cells), dtype=bool), effects[self.kept]
        steps = self.chosen.ig_steps if method == "ig" else 0
        estimate, _, _ = attributions(self.task, cells, self.metric, steps=steps, runs=self.runs)
        self._keep_correct()
        leading = np.argsort(-np.abs(estimate.mean(0)), kind="stable")[: math.ceil(self.chosen.confirm * len(cells))]
        tested = np.isin(np.arange(len(cells)), leading)
        effects = estimate.copy()
        effects[:, tested] = self.sweep([(cell,) for cell, exact in zip(cells, tested, strict=True) if exact])
        return estimate[self.kept].mean(0), tested, effects[self.kept]

    def sweep(self, patches: Sequence[Patch]) -> Float[np.ndarray, "prompt patch"]:
        """Patch exactly; without patches nothing runs."""
        if not patches:
            return np.zeros((len(self.kept), 0))
        chosen = self.chosen
        found = sweep(
            self.task, patches, self.metric, max_tokens=chosen.max_tokens, progress=chosen.progress, runs=self.runs
        )  # fmt: skip
        self.shortcuts = self.shortcuts and found.exact_shortcuts
        return found.effects

    def _keep_correct(self) -> None:
        if not self.chosen.only_correct:
            return
        if self.metric != "logit_diff":
            raise UserError("only_correct=True needs metric='logit_diff', which says whether the answer is favoured.")
        clean = self.runs.source if self.task.clean_is_source else self.runs.target
        self.kept = clean > 0
        if not self.kept.any():
            raise UserError(
                f"The {'source' if self.task.clean_is_source else 'target'} run prefers the distractor in all "
                f"{len(clean)} prompts, so there is no behaviour to localize: check the answers, or only_correct=False."
            )

    def gap(self) -> np.ndarray | None:
        """Source minus target per prompt; raises :class:`UserError` when their means cannot be told apart."""
        if not self.chosen.normalise:
            return None
        difference = self.source - self.target
        found = mean_interval(difference, clusters=self.clusters, draws=self.chosen.draws, seed=self.chosen.seed)
        if found.low <= 0 <= found.high or found.estimate == 0:
            names, metric = self.task.names, self.metric
            raise UserError(
                f"Nothing to localize: {metric} is {self.source.mean():.4g} in the {names[0]} run and "
                f"{self.target.mean():.4g} in the {names[1]} run (n = {len(difference)}), which cannot be told apart; "
                "use prompts on which they differ, or normalise=False for raw effects."
            )
        return difference

    def together(self, table: pd.DataFrame, score: _Scorer) -> pd.DataFrame | None:
        """The best heads patched at once, beside random heads of the same layers."""
        cells = self.cells
        count = self.chosen.together if self.chosen.together is not None else max(1, round(0.1 * len(cells)))
        count = min(count, len(cells) // 2)
        if count < 1:
            return None
        best = [cells[index] for index in np.argsort(-table["score"].to_numpy(), kind="stable")[:count]]
        heads = {(cell.layer, int(cell.head or 0)): 0.0 for cell in cells}
        chosen = [(cell.layer, int(cell.head or 0)) for cell in best]
        random = matched_cells(chosen, heads, self.chosen.controls, self.chosen.seed, nearest=len(heads))
        counts = sorted({1, count, *(step for step in (2, 4, 8, 16, 32) if step < count)})
        kind = best[0].kind
        patches = [tuple(best[:step]) for step in counts]
        patches += [tuple(Cell(kind, *place) for place in draw[:step]) for draw in random for step in counts]
        effects = self.sweep(patches)[self.kept]
        found = score.of(effects)
        drawn = found.estimate[len(counts) :].reshape(len(random), len(counts))
        control_low, control_high = interval(drawn)
        return pd.DataFrame({
            "count": counts, "score": found.estimate[: len(counts)],
            "low": found.low[: len(counts)], "high": found.high[: len(counts)],
            "control": drawn.mean(0), "control_low": control_low, "control_high": control_high,
        })  # fmt: skip


class _Scorer:
    """Scores with intervals from per-prompt effects."""

    def __init__(
        self,
        effects: Float[np.ndarray, "prompt cell"],
        gap: np.ndarray | None,
        clusters: np.ndarray,
        chosen: PatchOptions,
    ) -> None:
        self.effects, self.gap, self.clusters, self.chosen = effects, gap, clusters, chosen

    def of(self, effects: Float[np.ndarray, "prompt cell"]) -> Intervals:
        """The score of each cell: mean effect over mean gap."""
        draws, seed = self.chosen.draws, self.chosen.seed
        if self.gap is None:
            return mean_intervals(effects, clusters=self.clusters, draws=draws, seed=seed)
        return ratio_intervals(effects, self.gap[:, None], clusters=self.clusters, draws=draws, seed=seed)

    def q(self) -> np.ndarray:
        """False-discovery rate that a cell's mean effect is 0, by prompt."""
        return q_values(paired_permutation(cluster_means(self.effects, self.clusters), seed=self.chosen.seed).p)

    def value_of(self, metric: Float[np.ndarray, " prompt"]) -> tuple[float, float, float]:
        """A run's mean metric with its interval."""
        found = mean_interval(metric, clusters=self.clusters, draws=self.chosen.draws, seed=self.chosen.seed)
        return found.estimate, found.low, found.high


def _table(
    cells: Sequence[Cell], score: _Scorer, estimate: np.ndarray | None, tested: np.ndarray, task: Task
) -> pd.DataFrame:
    found = score.of(score.effects)
    mean = found.estimate
    columns: dict[str, Any] = {"layer": [cell.layer for cell in cells]}
    if cells[0].head is not None:
        columns["head"] = [cell.head for cell in cells]
    else:
        columns["module"] = [cell.kind for cell in cells]
    if any(cell.positions is not None for cell in cells):
        columns["position"] = [_shown(cell, task) for cell in cells]
    columns |= {
        "score": mean, "low": found.low, "high": found.high,
        "control": mean_of_others(mean, score.chosen.controls, score.chosen.seed), "q": score.q(),
        "effect": score.effects.mean(0), "exact": tested,
    }  # fmt: skip
    if score.gap is not None:
        columns["restored"] = mean if task.clean_is_source else 1.0 - mean
    if estimate is not None:
        columns["attribution"] = estimate if score.gap is None else estimate / score.gap.mean()
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


def _provenance(search: _Search, settings: dict[str, Any]) -> Provenance:
    chosen, task = search.chosen, search.task
    return Provenance.of(
        "patching",
        task.models,
        task.prompts,
        seed=chosen.seed,
        device=str(task.target.device),
        forward_passes=_whole(search.runs.passes),
        backward_passes=_whole(search.runs.backward),
        settings={
            **settings, "source": task.names[0], "target": task.names[1], "frozen": "nothing: later layers recompute",
            "clashing_answers_dropped": task.dropped,
            "read_to_the_difference": task.read_on, "incorrect_dropped": int((~search.kept).sum()),
            "whole_forward_passes": not search.shortcuts,
        },
    )  # fmt: skip
