"""From numbers by prompt to estimates with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.behaviour.calibration import BINS, calibration_error, reliability
from workbench.behaviour.measuring import Measured
from workbench.behaviour.metrics import WHOLE
from workbench.stats.bootstrap import difference_interval, mean_interval, statistic_interval
from workbench.stats.intervals import Interval

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights [draw, prompt] -> [draw]."""


class Estimator:
    """Intervals of one set of prompts: over groups where prompts have them, the same draws for every model."""

    def __init__(
        self, clusters: np.ndarray | None, neutral_clusters: np.ndarray | None, seed: int, bins: int = BINS
    ) -> None:
        self.clusters, self.neutral_clusters, self.seed, self.bins = clusters, neutral_clusters, seed, bins

    def line(self, metric: str, own: Measured, others: Mapping[str, Measured]) -> dict[str, Any]:
        """estimate, low, high, n; and for each of ``others`` (``change``: the tuned model, ``from_base``) the paired
        difference with its interval."""
        found = self._estimate(metric, own)
        line: dict[str, Any] = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
        for name, other in others.items():
            difference = self._difference(metric, own, other)
            line |= {name: difference.estimate, f"{name}_low": difference.low, f"{name}_high": difference.high}
        return line

    def _estimate(self, metric: str, own: Measured) -> Interval:
        if metric not in WHOLE:
            return mean_interval(own.mean()[metric].to_numpy(), clusters=self.clusters, seed=self.seed)
        return self._whole(metric, self._statistic(metric, own), own)

    def _difference(self, metric: str, own: Measured, other: Measured) -> Interval:
        if metric not in WHOLE:
            values, theirs = own.mean()[metric].to_numpy(), other.mean()[metric].to_numpy()
            return difference_interval(values, theirs, paired=True, clusters=self.clusters, seed=self.seed)
        ours, theirs_ = self._statistic(metric, own), self._statistic(metric, other)
        return self._whole(metric, lambda weights: ours(weights) - theirs_(weights), own)

    def _whole(self, metric: str, statistic: Statistic, own: Measured) -> Interval:
        if metric == "perplexity":
            return statistic_interval(statistic, len(own.neutral[0]), clusters=self.neutral_clusters, seed=self.seed)
        return statistic_interval(statistic, len(own.frames[0]), clusters=self.clusters, seed=self.seed)

    def _statistic(self, metric: str, own: Measured) -> Statistic:
        """The mean over draws of the number of each draw."""
        if metric == "perplexity":
            return lambda weights: np.mean(
                [np.exp(-(weights @ one[:, 0]) / (weights @ one[:, 1])) for one in own.neutral], axis=0
            )
        pairs = [(one["confidence"].to_numpy(), one["accuracy"].to_numpy()) for one in own.frames]
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
    """One line per model and metric, with the paired change against the tuned model and against the base."""
    lines = []
    for model, own in measured.items():
        for metric in metrics:
            others = {"change": measured["tuned"], "from_base": measured["base"]}
            lines.append({"model": model, "metric": metric, **estimator.line(metric, own, others)})
    return pd.DataFrame(lines)
