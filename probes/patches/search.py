"""The sweeps of one patching call, and the scores that are made of their effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.matching import matched_cells
from probes.patches.attribution import attributions
from probes.patches.cells import Cell, Patch
from probes.patches.fast_pass import ALL, ESTIMATED, LEADING, RANDOM, confirmed_cells, too_long
from probes.patches.recorded import Recorded
from probes.patches.settings import PatchOptions
from probes.patches.sweep import sweep
from probes.patches.task import Task
from probes.resampling import cluster_means, interval
from workbench.errors import UserError
from workbench.stats.bootstrap import mean_interval, mean_intervals, ratio_intervals
from workbench.stats.fdr import q_values
from workbench.stats.intervals import Intervals
from workbench.stats.tests import paired_permutation
from workbench.typing import Float


@dataclass(frozen=True)
class Measured:
    """What patching each cell by itself did, or would do."""

    effects: Float[np.ndarray, "prompt cell"]
    estimate: Float[np.ndarray, " cell"] | None
    """Mean effect by gradients; None where every cell was patched."""
    confirmed: np.ndarray
    """[cell] why a cell is exact: all are, it leads, it was drawn at random; or that it is not."""

    @property
    def exact(self) -> np.ndarray:
        """[cell] whether the effect is that of a patch."""
        return self.confirmed != ESTIMATED


def _method_of(settings: PatchOptions, cells: Sequence[Cell], task: Task) -> str:
    if settings.exact or settings.method == "exact":
        return "exact"
    if settings.method != "auto":
        return settings.method
    tokens = 1 if task.whole is not None else max(task.lengths, default=1)
    return "attribution" if too_long(cells, task.target.n_layers, tokens) else "exact"


class Search:
    """The sweeps of one call, over runs that are recorded once."""

    def __init__(self, task: Task, cells: Sequence[Cell], metric: str, settings: PatchOptions) -> None:
        self.task, self.cells, self.metric, self.settings = task, cells, metric, settings
        self.runs = Recorded(task, cells, metric, settings.batch_size)
        self.method = _method_of(settings, cells, task)
        """exact, attribution or ig."""
        self.usable = np.ones(len(task.target_ids), dtype=bool)
        self.shortcuts = True

    @property
    def source(self) -> np.ndarray:
        return self.runs.source[self.usable]

    @property
    def target(self) -> np.ndarray:
        return self.runs.target[self.usable]

    @property
    def clusters(self) -> np.ndarray:
        return self.task.prompts.clusters[self.usable]

    def run(self) -> Measured:
        """Every cell by itself: all exactly, or estimated with some confirmed."""
        cells = self.cells
        if self.method == "exact":
            effects = self.sweep([(cell,) for cell in cells])
            self._keep_correct()
            return Measured(effects[self.usable], None, np.full(len(cells), ALL))
        steps = self.settings.ig_steps if self.method == "ig" else 0
        estimate, _, _ = attributions(
            self.task, cells, self.metric, steps=steps, runs=self.runs, progress=self.settings.progress
        )
        self._keep_correct()
        settings = self.settings
        leading, sample = confirmed_cells(estimate.mean(0), settings.confirm, settings.confirm_others, settings.seed)
        exact = leading | sample
        effects = estimate.copy()
        effects[:, exact] = self.sweep([(cell,) for cell, patched in zip(cells, exact, strict=True) if patched])
        confirmed = np.where(leading, LEADING, np.where(sample, RANDOM, ESTIMATED))
        return Measured(effects[self.usable], estimate[self.usable].mean(0), confirmed)

    def sweep(self, patches: Sequence[Patch]) -> Float[np.ndarray, "prompt patch"]:
        """Patch exactly; without patches nothing runs."""
        if not patches:
            return np.zeros((len(self.usable), 0))
        settings = self.settings
        swept = sweep(
            self.task, patches, self.metric, max_tokens=settings.max_tokens, progress=settings.progress, runs=self.runs
        )  # fmt: skip
        self.shortcuts = self.shortcuts and swept.exact_shortcuts
        return swept.effects

    def _keep_correct(self) -> None:
        if not self.settings.only_correct:
            return
        if self.metric != "logit_diff":
            raise UserError("only_correct=True needs metric='logit_diff', which says whether the answer is favoured.")
        clean = self.runs.source if self.task.clean_is_source else self.runs.target
        self.usable = clean > 0
        if not self.usable.any():
            raise UserError(
                f"The {'source' if self.task.clean_is_source else 'target'} run prefers the distractor in all "
                f"{len(clean)} prompts, so there is no behaviour to localize: check the answers, or only_correct=False."
            )

    def gap(self) -> np.ndarray | None:
        """Source minus target per prompt; raises :class:`UserError` when their means cannot be told apart."""
        if not self.settings.normalise:
            return None
        difference = self.source - self.target
        bounds = mean_interval(difference, clusters=self.clusters, draws=self.settings.draws, seed=self.settings.seed)
        if bounds.low <= 0 <= bounds.high or bounds.estimate == 0:
            names, metric = self.task.names, self.metric
            raise UserError(
                f"Nothing to localize: {metric} is {self.source.mean():.4g} in the {names[0]} run and "
                f"{self.target.mean():.4g} in the {names[1]} run (n = {len(difference)}), which cannot be told apart; "
                "use prompts on which they differ, or normalise=False for raw effects."
            )
        return difference

    def together(self, table: pd.DataFrame, score: Scorer) -> pd.DataFrame | None:
        """The best heads patched at once, beside random heads of the same layers."""
        cells = self.cells
        by_default = 0 if self.settings.method == "auto" and self.method != "exact" else max(1, round(0.1 * len(cells)))
        count = self.settings.together if self.settings.together is not None else by_default
        count = min(count, len(cells) // 2)
        if count < 1:
            return None
        best = [cells[index] for index in np.argsort(-table["score"].to_numpy(), kind="stable")[:count]]
        heads = {(cell.layer, int(cell.head or 0)): 0.0 for cell in cells}
        best_heads = [(cell.layer, int(cell.head or 0)) for cell in best]
        random = matched_cells(best_heads, heads, self.settings.controls, self.settings.seed, nearest=len(heads))
        counts = sorted({1, count, *(step for step in (2, 4, 8, 16, 32) if step < count)})
        kind = best[0].kind
        patches = [tuple(best[:step]) for step in counts]
        patches += [tuple(Cell(kind, *place) for place in draw[:step]) for draw in random for step in counts]
        effects = self.sweep(patches)[self.usable]
        bounds = score.of(effects)
        drawn = bounds.estimate[len(counts) :].reshape(len(random), len(counts))
        control_low, control_high = interval(drawn)
        return pd.DataFrame({
            "count": counts, "score": bounds.estimate[: len(counts)],
            "low": bounds.low[: len(counts)], "high": bounds.high[: len(counts)],
            "control": drawn.mean(0), "control_low": control_low, "control_high": control_high,
        })  # fmt: skip


class Scorer:
    """Scores with intervals from per-prompt effects."""

    def __init__(
        self,
        effects: Float[np.ndarray, "prompt cell"],
        gap: np.ndarray | None,
        clusters: np.ndarray,
        settings: PatchOptions,
    ) -> None:
        self.effects, self.gap, self.clusters, self.settings = effects, gap, clusters, settings

    def of(self, effects: Float[np.ndarray, "prompt cell"]) -> Intervals:
        """The score of each cell: mean effect over mean gap."""
        draws, seed = self.settings.draws, self.settings.seed
        if self.gap is None:
            return mean_intervals(effects, clusters=self.clusters, draws=draws, seed=seed)
        return ratio_intervals(effects, self.gap[:, None], clusters=self.clusters, draws=draws, seed=seed)

    def q(self) -> np.ndarray:
        """False-discovery rate that a cell's mean effect is 0, by prompt."""
        return q_values(paired_permutation(cluster_means(self.effects, self.clusters), seed=self.settings.seed).p)

    def value_of(self, metric: Float[np.ndarray, " prompt"]) -> tuple[float, float, float]:
        """A run's mean metric with its interval."""
        bounds = mean_interval(metric, clusters=self.clusters, draws=self.settings.draws, seed=self.settings.seed)
        return bounds.estimate, bounds.low, bounds.high
