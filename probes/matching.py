"""Random cells as a control: as many as were chosen, in the same layers, and where it matters about as often used.

A rarely used expert is a free control: switching it changes nothing whatever the method, so frequency must match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from workbench.errors import UserError

Place = tuple[int, int]
"""(layer, expert) or (layer, head)"""
NEAREST = 3


def matched_cells(
    places: Sequence[Place], use: Mapping[Place, float], draws: int, seed: int, nearest: int = NEAREST
) -> list[list[Place]]:
    """For each draw a stand-in for every chosen cell, in order, so that the first n match the first n.

    ``use`` holds every cell with how often it is used (equal numbers where that does not matter). A stand-in is drawn
    from the ``nearest`` cells of the same layer by use that were not chosen and are not taken yet; where a layer has
    none left, from all layers. Raises :class:`UserError` when too few cells were not chosen.
    """
    rng = np.random.default_rng(seed)
    others = [place for place in use if place not in set(places)]
    if len(others) < len(places):
        raise UserError(
            f"{len(places)} chosen cells leave only {len(others)} others as a control: choose fewer, at most "
            f"{len(use) // 2} of {len(use)}."
        )
    return [_one_draw(places, use, others, nearest, rng) for _ in range(draws)]


def _one_draw(
    places: Sequence[Place], use: Mapping[Place, float], others: Sequence[Place], nearest: int, rng: np.random.Generator
) -> list[Place]:
    left, drawn = list(others), []
    for place in places:
        same_layer = [other for other in left if other[0] == place[0]] or left
        close = sorted(same_layer, key=lambda other: abs(use[other] - use[place]))[:nearest]
        taken = close[int(rng.integers(len(close)))]
        left.remove(taken)
        drawn.append(taken)
    return drawn
