"""Random experts as a control: as many, in the same layers, selected about as often.

A rarely used expert is a free control: switching it changes nothing whatever the method, so frequency must match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from workbench.errors import UserError

Expert = tuple[int, int]
"""(layer, expert)"""
NEAREST = 3


def matched_experts(
    ranked: Sequence[Expert], frequency: Mapping[Expert, float], draws: int, seed: int, nearest: int = NEAREST
) -> list[list[Expert]]:
    """For each draw a stand-in for every ranked expert, in order, so that the first n match the first n.

    A stand-in is drawn from the ``nearest`` unranked experts of the same layer by frequency that are not taken yet;
    where a layer has none left, from all layers. Raises :class:`UserError` when too few unranked experts exist.
    """
    rng = np.random.default_rng(seed)
    others = [expert for expert in frequency if expert not in set(ranked)]
    if len(others) < len(ranked):
        raise UserError(
            f"{len(ranked)} ranked experts leave only {len(others)} others as a control: switch fewer, at most "
            f"{len(frequency) // 2} of {len(frequency)}."
        )
    return [_one_draw(ranked, frequency, others, nearest, rng) for _ in range(draws)]


def _one_draw(
    ranked: Sequence[Expert],
    frequency: Mapping[Expert, float],
    others: Sequence[Expert],
    nearest: int,
    rng: np.random.Generator,
) -> list[Expert]:
    left, chosen = list(others), []
    for expert in ranked:
        same_layer = [other for other in left if other[0] == expert[0]] or left
        close = sorted(same_layer, key=lambda other: abs(frequency[other] - frequency[expert]))[:nearest]
        taken = close[int(rng.integers(len(close)))]
        left.remove(taken)
        chosen.append(taken)
    return chosen
