"""The highest entries of many tensors together, without holding more than one of them.

A threshold is found digit by digit, by counting: nothing is sorted, and nothing as large as all tensors is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from workbench.typing import Int, Tensor

_DIGITS = ((21, 11), (10, 11), (0, 10))
"""(first bit, bits) of the digits of a number of 32 bits, the highest first."""


def highest(values: Callable[[str], Tensor], names: Sequence[str], count: int) -> dict[str, Tensor]:
    """Masks of the ``count`` highest entries (all, when there are fewer); ties by order of ``names``, then of place.

    ``values(name)`` is asked for four times, and must be the same each time; it is compared in float32.
    """
    threshold, ties = -(2**31), count  # the lowest number that the digits found so far allow
    for first, bits in _DIGITS:
        counts = torch.zeros(2**bits, dtype=torch.long)
        for name in names:
            ordered = _ordered(values(name))
            if first + bits < 32:
                ordered = ordered[ordered >> (first + bits) == threshold >> (first + bits)]
            counts += torch.bincount((ordered >> first).sub_(threshold >> first), minlength=2**bits).cpu()
        digit, above = _where_reached(counts, ties)
        threshold, ties = threshold + (digit << first), ties - above
    masks = {}
    for name in names:
        scores = values(name)
        ordered = _ordered(scores)
        mask = ordered > threshold
        taken = (ordered == threshold).nonzero()[:ties, 0]
        mask[taken] = True
        ties -= len(taken)
        masks[name] = mask.reshape(scores.shape)
    return masks


def _ordered(values: Tensor) -> Int[Tensor, " entry"]:
    """Whole numbers of 32 bits in the order of the floats; -0 counts as 0."""
    bits = (values.reshape(-1).float() + 0.0).view(torch.int32)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


def _where_reached(counts: Int[Tensor, " digit"], wanted: int) -> tuple[int, int]:
    """The digit at which, counted from the highest, ``wanted`` entries are reached (the lowest, when there are fewer),
    and how many lie above it."""
    summed = counts.flip(0).cumsum(0)
    place = min(int((summed < wanted).sum()), len(counts) - 1)
    digit = len(counts) - 1 - place
    return digit, int(summed[place] - counts[digit])
