"""The shape of a dose curve: flat, linear, saturating or overshooting, or not to be told from so few prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workbench.errors import UserError
from workbench.stats.bootstrap import LEVEL, statistic_interval
from workbench.stats.intervals import Interval
from workbench.typing import Float

LEAST = 4
"""Strengths from which a curve has a shape."""
BENT = 0.5
"""The last half's slope over the first half's, below which a curve saturates."""
FEWEST = 8
"""Prompts from which a shape is told at all."""
BACK = 0.1
"""The part of the curve's range by which it falls back from its height when it overshoots."""


@dataclass(frozen=True)
class DoseShape:
    """``name``: flat, linear, saturating, overshooting or undecided; and the three numbers it was told by."""

    name: str
    change: Interval
    """The metric at the strongest dose less that at the weakest."""
    bend: Interval
    """Mean slope over the last half of the strengths, over that of the first half."""
    fall: Interval
    """How far the curve falls back from its farthest point, as a part of its range."""

    def __str__(self) -> str:
        return (
            f"{self.name}: change {self.change.estimate:+.3g} [{self.change.low:.3g}, {self.change.high:.3g}], slope "
            f"of the last half {self.bend.estimate:.2g} [{self.bend.low:.2g}, {self.bend.high:.2g}] of the first's, "
            f"falls back by {self.fall.estimate:.0%} [{self.fall.low:.0%}, {self.fall.high:.0%}] of its range"
        )


def shape_of(
    strengths: Float[np.ndarray, " strength"], values: Float[np.ndarray, "strength prompt"], *, seed: int = 0
) -> DoseShape:
    """Tell the shape, each number with its 95 % interval over prompts.

    A curve overshoots when it falls back from its farthest point by more than a tenth of its range for certain (the
    interval lies above); it is flat when its farthest point is not told from the start; it saturates when
    the last half's slope is less than half of the first half's for certain, and is linear when it is more than that
    for certain.

    Args:
        strengths: In ascending order.
        values: The metric of each prompt at each strength.
        seed: Of the resampling.

    Raises:
        UserError: There are fewer than four strengths.
    """
    steps = np.asarray(strengths, dtype=np.float64)
    if len(steps) < LEAST:
        raise UserError(f"{len(steps)} strengths have no shape: give at least {LEAST}, from 0 to beyond 1.")
    curves = np.asarray(values, dtype=np.float64)

    means = curves.mean(1)
    far = int(np.abs(means - means[0]).argmax())
    size = max(float(np.ptp(means)), 1e-12)

    def interval_of(statistic: Callable[[np.ndarray], np.ndarray], level: float = LEVEL) -> Interval:
        def of_means(weights: np.ndarray) -> np.ndarray:
            return statistic(weights @ curves.T / weights.sum(1, keepdims=True))

        return statistic_interval(of_means, curves.shape[1], seed=seed, method="percentile", level=level)

    change = interval_of(lambda means: means[:, -1] - means[:, 0])
    bend = interval_of(lambda drawn: _bend(steps, drawn))
    sign = np.sign(means[far] - means[0])
    fall = interval_of(lambda drawn: sign * (drawn[:, far] - drawn[:, -1]) / size)
    # the farthest of so many points: its interval is as much wider
    farthest = interval_of(lambda drawn: drawn[:, far] - drawn[:, 0], level=1 - (1 - LEVEL) / len(steps))
    enough = curves.shape[1] >= FEWEST
    return DoseShape(_name(change, bend, fall, farthest) if enough else "undecided", change, bend, fall)


def _bend(steps: np.ndarray, means: np.ndarray) -> np.ndarray:
    middle = len(steps) // 2
    first = (means[:, middle] - means[:, 0]) / (steps[middle] - steps[0])
    last = (means[:, -1] - means[:, middle]) / (steps[-1] - steps[middle])
    ratio: np.ndarray = last / np.where(np.abs(first) < 1e-12, 1e-12, first)
    return ratio


def _name(change: Interval, bend: Interval, fall: Interval, farthest: Interval) -> str:
    if farthest.low <= 0 <= farthest.high:
        return "flat"
    if fall.low > BACK:
        return "overshooting"
    if change.low <= 0 <= change.high:
        return "undecided"
    if bend.high < BENT:
        return "saturating"
    return "linear" if bend.low > BENT else "undecided"
