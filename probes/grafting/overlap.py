"""Whether two skills use the same weights."""

from __future__ import annotations

import numpy as np

from probes.comparison import Overlap, overlap
from probes.grafting.result import GraftResult, flat_places
from workbench.errors import UserError


def mask_overlap(first: GraftResult, second: GraftResult) -> Overlap:
    """|A and B| of two grafts of one model with its chance level; ``recall_of_first`` is the paper's |A and B| / |A|.

    Chance chooses as many entries at random from the eligible ones (of the larger region, where they differ).
    """
    if "ranks" in (first.level, second.level):
        raise UserError("Grafts of ranks choose no entries; find both with level='entries' to compare them.")
    one, other = flat_places(first.mask), flat_places(second.mask)
    shared = sum(len(np.intersect1d(one[name].numpy(), other[name].numpy())) for name in one.keys() & other.keys())
    counts = [sum(len(places) for places in chosen.values()) for chosen in (one, other)]
    return overlap(shared, counts[0], counts[1], max(first.eligible, second.eligible))
