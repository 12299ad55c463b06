"""Slopes of the loss, added up over batches in half precision: half a copy of the weights instead of a whole one."""

from __future__ import annotations

import torch

from probes.grafting.units import Units
from workbench.typing import Float, Tensor

_EXPONENT = 0x7F800000
"""The bits of a float32 that say its power of two."""
_TOP = 2.0**14
"""Where the largest number of a tensor is put: float16 ends at 65504."""
_LEAST = 2.0**-112
"""The smallest power of two that a scale is made of: below it, the scale itself would be subnormal."""


class Slopes:
    """dL/dgamma per unit, shaped as ``like``: float16, and one scale per tensor, so that numbers are scale * stored.

    After every :meth:`add` the scale is the power of two that puts the tensor's largest number between 2**14 and 2**15:
    scaling rounds nothing, nothing overflows, and what is zero or tiny at first loses nothing to what comes later.
    A sum is rounded to 11 bits, a relative error of at most 2**-11 (0.05 %) per batch for numbers down to 2**-29 of
    the tensor's largest, and an absolute one of 2**-40 of the largest below. A step needs no more: it is the slope
    times a rate, or a bounded function of it, and only which logits end above 0 counts; gradients of another sample of
    prompts differ by far more. Numbers that are not finite are not hidden: they make the whole tensor NaN.
    """

    def __init__(self, like: Units) -> None:
        self.region = like.region
        self._stored = {key: torch.zeros_like(flat, dtype=torch.float16) for key, flat in like.flat.items()}
        # on the device, so that following the largest number waits for nothing
        self._scale = {key: flat.new_zeros(()) for key, flat in like.flat.items()}

    def read(self, key: str) -> Float[Tensor, "*unit"]:
        """One tensor of slopes: a copy, in float32."""
        return self._stored[key].float().mul_(self._scale[key])

    def add(self, name: str, values: Float[Tensor, "*unit"]) -> None:
        """Add ``values``, shaped as the units of the part ``name``."""
        key = self.region.key(name)
        total = self.read(key)
        self.region.add_up(name, values, total)
        lowest, highest = torch.aminmax(total)
        largest = torch.maximum(-lowest, highest)
        power = (largest.view(torch.int32) & _EXPONENT).view(torch.float32)
        self._scale[key] = power.clamp(min=_LEAST) / _TOP
        self._stored[key].copy_(total.div_(self._scale[key]))

    def fade(self, factor: float) -> None:
        """Multiply everything by ``factor``; the stored numbers stay as they are."""
        for scale in self._scale.values():
            scale.mul_(factor)

    def zero(self) -> None:
        """Begin anew, whatever was there."""
        for held in (self._stored, self._scale):
            for slope in held.values():
                slope.zero_()
