"""What can be grafted: the changed tensors, cut into units (entries, rows, heads, modules, LoRA ranks)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from workbench.errors import UserError
from workbench.typing import Bool, Float, Int, Tensor

Level = Literal["entries", "rows", "heads", "modules", "ranks"]
_ALL = ""
LEVELS: tuple[Level, ...] = ("entries", "rows", "heads", "modules", "ranks")


@dataclass(frozen=True)
class Part:
    """One tensor in both versions, neither copied. ``units`` [broadcastable to the tensor] numbers the unit each
    entry belongs to; None: every entry is a unit of its own."""

    base: Tensor
    tuned: Tensor
    units: Int[Tensor, "*unit"] | None = None

    @property
    def unit_shape(self) -> torch.Size:
        return self.base.shape if self.units is None else self.units.shape

    @property
    def entries_per_unit(self) -> int:
        """Entries of this tensor behind one element of ``unit_shape``."""
        return self.base.numel() // max(1, self.unit_shape.numel())

    def mixed(self, gamma: Float[Tensor, "*unit"]) -> Tensor:
        """base + gamma * (tuned - base)."""
        return torch.lerp(self.base, self.tuned, gamma.to(self.base.dtype).expand_as(self.base))

    def selected(self, mask: Bool[Tensor, "*unit"]) -> Tensor:
        """The tuned values where the mask is True: bit for bit, at both ends."""
        return torch.where(mask, self.tuned, self.base)

    def effect(self, gradient: Tensor) -> Float[Tensor, "*unit"]:
        """How the loss changes per unit of gamma: the sum of gradient * (tuned - base) over each unit."""
        change = self.tuned.float() - self.base.float()
        return _summed(change.mul_(gradient), self.unit_shape)

    def movement(self) -> Float[Tensor, "*unit"]:
        """Squared change of each unit."""
        return _summed((self.tuned.float() - self.base.float()).square_(), self.unit_shape)


@dataclass(frozen=True)
class RankPart(Part):
    """A tensor changed by ``up @ down``, cut by rank; ``tuned`` stands for the base plus the whole change."""

    up: Float[Tensor, "out rank"] | None = None
    down: Float[Tensor, "rank into"] | None = None

    @property
    def entries_per_unit(self) -> int:
        up, down = self._factors()
        return up.shape[0] + down.shape[1]

    def mixed(self, gamma: Float[Tensor, " rank"]) -> Tensor:
        up, down = self._factors()
        change = (up.float() * gamma.float()) @ down.float()
        return (self.base.float() + (change if change.shape == self.base.shape else change.T)).to(self.base.dtype)

    def selected(self, mask: Bool[Tensor, " rank"]) -> Tensor:
        if bool(mask.all()) or not bool(mask.any()):
            return self.tuned if bool(mask.any()) else self.base
        return self.mixed(mask.float())

    def effect(self, gradient: Tensor) -> Float[Tensor, " rank"]:
        up, down = self._factors()
        turned = gradient.float() if gradient.shape == (up.shape[0], down.shape[1]) else gradient.float().T
        return torch.einsum("or,oi,ri->r", up.float(), turned, down.float())

    def movement(self) -> Float[Tensor, " rank"]:
        up, down = self._factors()
        return up.float().square().sum(0) * down.float().square().sum(1)

    def _factors(self) -> tuple[Tensor, Tensor]:
        if self.up is None or self.down is None:
            raise UserError("Ranks need the factors of a LoRA; take level='entries' for other changes.")
        return self.up, self.down


def _summed(product: Tensor, shape: torch.Size) -> Tensor:
    if product.shape == shape:
        return product
    ranks = range(product.ndim - len(shape), product.ndim)
    over = [axis for axis, size in zip(ranks, shape, strict=True) if size == 1 and product.shape[axis] != 1]
    summed = product.sum(over, keepdim=True) if over else product
    return summed.reshape(shape)


@dataclass(frozen=True)
class Region:
    """The parts by name, and how large each unit is; ``sizes`` is None when every entry is a unit.

    ``reserved``: unit 0 collects the entries that belong to no unit (keys and values that several query heads
    share) and is never chosen.
    """

    parts: Mapping[str, Part]
    sizes: Int[Tensor, " unit"] | None = None
    reserved: bool = False

    @property
    def n_entries(self) -> int:
        """How many entries can be chosen."""
        if self.sizes is not None:
            return int(self.sizes[int(self.reserved) :].sum())
        return sum(part.base.numel() for part in self.parts.values())

    def key(self, name: str) -> str:
        """Where the numbers of a part's units are held: by its name, or all together when units span parts."""
        return name if self.parts[name].units is None else _ALL

    def add_up(self, name: str, values: Float[Tensor, "*unit"], total: Float[Tensor, "*units"]) -> None:
        """Add ``values``, shaped as the units of the part ``name``, to what is held at its key."""
        units = self.parts[name].units
        if units is None:
            total += values
            return
        total.index_add_(0, units.reshape(-1), values.reshape(-1).to(total))
        if self.reserved:
            total[0] = 0.0


def region_of(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    units: Callable[[str, Tensor], Int[Tensor, "*unit"] | None] | None = None,
    *,
    reserved: bool = False,
) -> Region:
    """The tensors of both versions as a region. ``units(name, tensor)`` numbers units from 0 over all tensors, and
    leaves a tensor out by returning None; without it every entry is a unit.

    Raises :class:`UserError` when nothing differs.
    """
    parts: dict[str, Part] = {}
    for name in base:
        if name not in tuned or torch.equal(base[name], tuned[name]):
            continue
        numbered = units(name, base[name]) if units is not None else None
        if units is None or numbered is not None:
            parts[name] = Part(base[name], tuned[name], numbered)
    return sized(parts, reserved=reserved)


def sized(parts: Mapping[str, Part], *, reserved: bool = False) -> Region:
    """A region with the sizes of its units counted."""
    if not parts:
        raise UserError("Base and tuned model do not differ in any eligible weight: there is nothing to graft.")
    if any(part.units is None for part in parts.values()):
        return Region(parts)
    count = 1 + max(int(part.units.max()) for part in parts.values() if part.units is not None)
    sizes = torch.zeros(count, dtype=torch.long)
    for part in parts.values():
        assert part.units is not None
        sizes.index_add_(0, part.units.reshape(-1).cpu(), torch.full((part.units.numel(),), part.entries_per_unit))
    return Region(parts, sizes, reserved)
