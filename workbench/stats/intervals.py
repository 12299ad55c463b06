"""A number with its uncertainty, and a map of such numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate, its interval and how many prompts it rests on."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n}"


class Intervals(NamedTuple):
    """One interval per cell: three arrays ``[*cell]``."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int

    def cell(self, *place: int) -> Interval:
        """The interval of one cell."""
        return Interval(float(self.estimate[place]), float(self.low[place]), float(self.high[place]), self.n)
