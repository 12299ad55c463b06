"""Uncertainty and controls: intervals over prompts, tests per cell, false-discovery rates, matched random
draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.stats.bootstrap import difference_interval as difference_interval
    from workbench.stats.bootstrap import mean_interval as mean_interval
    from workbench.stats.bootstrap import mean_intervals as mean_intervals
    from workbench.stats.bootstrap import ratio_intervals as ratio_intervals
    from workbench.stats.bootstrap import statistic_interval as statistic_interval
    from workbench.stats.controls import against_controls as against_controls
    from workbench.stats.controls import random_directions as random_directions
    from workbench.stats.controls import random_subspaces as random_subspaces
    from workbench.stats.controls import random_units as random_units
    from workbench.stats.fdr import q_values as q_values
    from workbench.stats.intervals import Interval as Interval
    from workbench.stats.intervals import Intervals as Intervals
    from workbench.stats.shares import share_interval as share_interval
    from workbench.stats.shares import share_intervals as share_intervals
    from workbench.stats.tests import mann_whitney as mann_whitney
    from workbench.stats.tests import paired_permutation as paired_permutation
    from workbench.stats.tests import permutation as permutation

_HOMES = {
    "Interval": "intervals",
    "Intervals": "intervals",
    "mean_interval": "bootstrap",
    "mean_intervals": "bootstrap",
    "difference_interval": "bootstrap",
    "ratio_intervals": "bootstrap",
    "statistic_interval": "bootstrap",
    "share_interval": "shares",
    "share_intervals": "shares",
    "mann_whitney": "tests",
    "paired_permutation": "tests",
    "permutation": "tests",
    "q_values": "fdr",
    "against_controls": "controls",
    "random_directions": "controls",
    "random_subspaces": "controls",
    "random_units": "controls",
}

__all__ = [
    "Interval",
    "Intervals",
    "against_controls",
    "difference_interval",
    "mann_whitney",
    "mean_interval",
    "mean_intervals",
    "paired_permutation",
    "permutation",
    "q_values",
    "random_directions",
    "random_subspaces",
    "random_units",
    "ratio_intervals",
    "share_interval",
    "share_intervals",
]

__getattr__ = lazy(__name__, _HOMES)
