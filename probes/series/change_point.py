"""When something appeared in a series: the best split of a curve into before and after, with interval and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import UserError
from workbench.typing import Float

_FEWEST = 4


@dataclass(frozen=True)
class ChangePoint:
    """``index`` is the first step after the change; ``low``, ``high`` its 95 % interval over units.

    ``p``: how often steps in random order split as well; ``before`` and ``after`` are the means on either side.
    """

    index: int
    low: int
    high: int
    p: float
    before: float
    after: float


def change_point(values: Float[np.ndarray, "step unit"], *, draws: int = 1000, seed: int = 0) -> ChangePoint:
    """One change of the mean, by least squares (Hinkley 1970), of a curve measured on the same units at every step.

    The interval draws units again; the test puts the steps in random order, so that a trend of many small steps also
    counts as change, and a flat curve does not.

    Args:
        values: A value per step and unit (prompts); one unit is enough for an estimate without a real interval.
        draws: Resamples of the interval and orders of the test.
        seed: Their seed.

    Raises:
        UserError: Fewer than four steps.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if len(table) < _FEWEST:
        raise UserError(f"A change can be dated in {_FEWEST} steps or more; this series has {len(table)}.")
    generator = np.random.default_rng(seed)
    curve = table.mean(1)
    index, gain = _split(curve)
    drawn = [_split(table[:, generator.integers(0, table.shape[1], table.shape[1])].mean(1))[0] for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    orders = [_split(generator.permutation(curve))[1] for _ in range(draws)]
    p = (1 + sum(order >= gain - 1e-12 for order in orders)) / (draws + 1)
    return ChangePoint(index, int(low), int(high), float(p), float(curve[:index].mean()), float(curve[index:].mean()))


def _split(curve: Float[np.ndarray, " step"]) -> tuple[int, float]:
    """The split that takes most of the squares away, and how much."""
    n = len(curve)
    sums = np.cumsum(curve)[:-1]
    left = np.arange(1, n)
    right = n - left
    gains = (sums / left - (curve.sum() - sums) / right) ** 2 * left * right / n
    best = int(gains.argmax())
    return best + 1, float(gains[best])
