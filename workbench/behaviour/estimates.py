"""From numbers by prompt to estimates with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.behaviour.calibration import BINS, calibration_error, reliability
from workbench.behaviour.measuring import Measured
from workbench.behaviour.metrics import SHARES, WHOLE
from workbench.stats.bootstrap import mean_intervals, statistic_interval
from workbench.stats.intervals import Interval, Intervals
from workbench.stats.shares import share_intervals, with_exact_change

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights [draw, prompt] -> [draw]."""


class Estimator:
    """Intervals of one set of prompts: over groups where prompts have them, the same draws for every model."""

    def __init__(
        self,
        clusters: np.ndarray | None,
        neutral_clusters: np.ndarray | None,
        seed: int,
        bins: int = BINS,
        shares: Collection[str] = SHARES,
    ) -> None:
        """``shares``: the metrics that count prompts."""
        self.clusters, self.neutral_clusters, self.seed, self.bins = clusters, neutral_clusters, seed, bins
        self.shares = shares

    def means(self, measured: Mapping[str, Measured], metrics: Sequence[str]) -> Intervals:
        """Intervals [model, (itself, less the tuned model, less the base), metric] of means over prompts, all from the
        same draws."""
        values = np.stack([values_of.mean()[list(metrics)].to_numpy(np.float64) for values_of in measured.values()])
        names = list(measured)
        against = [np.zeros_like(values[0]), values[names.index("tuned")], values[names.index("base")]]
        cells = np.moveaxis(np.stack([values - other for other in against], axis=1), 2, 0)
        intervals = mean_intervals(cells, clusters=self.clusters, seed=self.seed)
        if counted := [place for place, metric in enumerate(metrics) if metric in self.shares]:
            shares = share_intervals(cells[:, :, 0, counted], clusters=self.clusters, seed=self.seed)
            intervals.low[:, 0, counted], intervals.high[:, 0, counted] = shares.low, shares.high
            estimate, low, high = (part[:, 1:, counted] for part in intervals[:3])
            changes = with_exact_change(Intervals(estimate, low, high, intervals.n), cells, self.clusters)
            intervals.low[:, 1:, counted], intervals.high[:, 1:, counted] = changes.low, changes.high
        return intervals

    def whole(self, metric: str, own: Measured, other: Measured | None = None) -> Interval:
        """The interval of a metric that is one number for all prompts, or of its difference from another model's."""
        ours = self._statistic(metric, own)
        if other is None:
            return self._whole(metric, ours, own)
        theirs = self._statistic(metric, other)
        return self._whole(metric, lambda weights: ours(weights) - theirs(weights), own)

    def _whole(self, metric: str, statistic: Statistic, own: Measured) -> Interval:
        if metric == "perplexity":
            return statistic_interval(statistic, len(own.neutral[0]), clusters=self.neutral_clusters, seed=self.seed)
        return statistic_interval(statistic, len(own.frames[0]), clusters=self.clusters, seed=self.seed)

    def _statistic(self, metric: str, own: Measured) -> Statistic:
        """The mean over draws of the number of each draw."""
        if metric == "perplexity":
            return lambda weights: np.mean(
                [np.exp(-(weights @ text[:, 0]) / (weights @ text[:, 1])) for text in own.neutral], axis=0
            )
        pairs = [(frame["confidence"].to_numpy(), frame["accuracy"].to_numpy()) for frame in own.frames]
        return lambda weights: np.mean(
            [calibration_error(weights, confidence, right, self.bins) for confidence, right in pairs], axis=0
        )

    def calibration(self, measured: Mapping[str, Measured]) -> pd.DataFrame:
        """The reliability curve of every model, the draws of a control together: model, then those of
        :func:`reliability`."""
        tables = []
        for model, own in measured.items():
            both = pd.concat(own.frames)
            clusters = None if self.clusters is None else np.tile(self.clusters, len(own.frames))
            curve = reliability(
                both["confidence"].to_numpy(), both["accuracy"].to_numpy(),
                bins=self.bins, clusters=clusters, seed=self.seed,
            )  # fmt: skip
            tables.append(curve.assign(model=model)[["model", *curve.columns]])
        return pd.concat(tables, ignore_index=True)


def estimates(measured: Mapping[str, Measured], metrics: Sequence[str], estimator: Estimator) -> pd.DataFrame:
    """One line per model and metric: estimate, low, high, n; ``change`` from the tuned model and ``from_base``, paired
    by prompt, each with its interval."""
    by_prompt = [metric for metric in metrics if metric not in WHOLE]
    means = estimator.means(measured, by_prompt) if by_prompt else None
    lines = []
    for place, (model, own) in enumerate(measured.items()):
        for metric in metrics:
            if means is not None and metric not in WHOLE:
                level, change, from_base = (means.cell(place, kind, by_prompt.index(metric)) for kind in range(3))
            else:
                others = (None, measured["tuned"], measured["base"])
                level, change, from_base = (estimator.whole(metric, own, other) for other in others)
            lines.append(
                {"model": model, "metric": metric, "estimate": level.estimate, "low": level.low, "high": level.high,
                 "n": level.n, **_named("change", change), **_named("from_base", from_base)}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _named(name: str, bounds: Interval) -> dict[str, Any]:
    return {name: bounds.estimate, f"{name}_low": bounds.low, f"{name}_high": bounds.high}
