"""Masks at one bit per entry, for those that are kept and not used."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.typing import Bool, Tensor


@dataclass(frozen=True)
class Packed:
    """``bits`` [byte], uint8: bit b of byte i is entry b * (number of bytes) + i of the flat mask."""

    bits: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, mask: Bool[Tensor, "*unit"]) -> Packed:
        """Eight entries per byte."""
        count = -(-mask.numel() // 8)
        bits = torch.zeros(count, dtype=torch.uint8, device=mask.device)
        for place, block in enumerate(mask.reshape(-1).view(torch.uint8).split(max(count, 1))):
            bits[: len(block)] |= block << place
        return cls(bits, mask.shape)

    def mask(self) -> Bool[Tensor, "*unit"]:
        """The mask that was packed."""
        mask = torch.empty(8 * len(self.bits), dtype=torch.bool, device=self.bits.device)
        for place, block in enumerate(mask.split(max(len(self.bits), 1))):
            torch.ne(self.bits & (1 << place), 0, out=block)
        return mask[: self.shape.numel()].reshape(self.shape)
