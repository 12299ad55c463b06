"""One number (or bit) per unit of a region: added up, ranked, cut at the top, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from probes.grafting.ranking import highest
from probes.grafting.regions import Region
from workbench.typing import Tensor

Mask = Mapping[str, Tensor]
"""Part name -> bool tensor, broadcastable to the part."""


class Units:
    """A number for every unit: one tensor per part, or one vector when units span parts."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.flat = {
            region.key(name): torch.zeros(
                part.base.shape if region.sizes is None else region.sizes.shape,
                dtype=torch.float32,
                device=part.base.device,
            )
            for name, part in region.parts.items()
        }

    def at(self, name: str) -> Tensor:
        """The numbers of a part, broadcastable to its tensor."""
        units, flat = self.region.parts[name].units, self.flat[self.region.key(name)]
        return flat if units is None else flat[units]

    def on(self, name: str) -> Tensor:
        """Where a part's numbers are above 0."""
        return self.at(name) > 0

    def add(self, name: str, values: Tensor) -> None:
        """Add ``values``, shaped as the part's units."""
        self.region.add_up(name, values, self.flat[self.region.key(name)])

    def first_size(self) -> int:
        """How many entries the highest unit holds."""
        sizes, first = self.region.sizes, int(self.region.reserved)
        if sizes is None:
            return 1
        (flat,) = self.flat.values()
        return int(sizes[first + int(flat[first:].argmax())])

    def top(self, entries: int) -> dict[str, Tensor]:
        """The mask of the highest units that together hold at most ``entries`` entries; ties by order."""
        sizes = self.region.sizes
        if sizes is not None:
            first = int(self.region.reserved)
            (flat,) = self.flat.values()
            order = flat[first:].argsort(descending=True, stable=True) + first
            taken = torch.zeros(len(sizes), dtype=torch.bool, device=order.device)
            taken[order[: int((sizes.to(order.device)[order].cumsum(0) <= entries).sum())]] = True
            return {name: taken[part.units] for name, part in self.region.parts.items() if part.units is not None}
        return highest(self.flat.__getitem__, list(self.flat), entries)


def tensor_effects(ranking: Units) -> list[float]:
    """The sum of the numbers of each part's units, in the order of the parts."""
    sums = []
    for name, part in ranking.region.parts.items():
        flat = ranking.flat[ranking.region.key(name)]
        sums.append(float((flat if part.units is None else flat[part.units.unique()]).double().sum()))
    return sums


def everything(region: Region) -> dict[str, Tensor]:
    """The mask of all units."""
    if region.reserved:
        return {name: part.units != 0 for name, part in region.parts.items() if part.units is not None}
    return {
        name: torch.ones(part.unit_shape, dtype=torch.bool, device=part.base.device)
        for name, part in region.parts.items()
    }


def entries_in(region: Region, mask: Mask) -> int:
    """How many entries a mask selects."""
    return sum(int(mask[name].sum()) * part.entries_per_unit for name, part in region.parts.items())


def complement(region: Region, mask: Mask) -> dict[str, Tensor]:
    """Everything in the region that ``mask`` leaves out."""
    return {name: whole & ~mask[name] for name, whole in everything(region).items()}


def random_like(region: Region, mask: Mask, generator: torch.Generator) -> dict[str, Tensor]:
    """A random mask with as many units in every tensor as ``mask`` (units that span tensors: as many in all)."""
    if region.sizes is not None:
        count, first = len(region.sizes), int(region.reserved)
        taken = torch.zeros(count, dtype=torch.bool)
        for name, part in region.parts.items():
            if part.units is not None:
                taken[part.units[mask[name]].reshape(-1).cpu()] = True
        drawn = torch.zeros(count, dtype=torch.bool)
        drawn[first + torch.randperm(count - first, generator=generator)[: int(taken.sum())]] = True
        return {
            name: drawn.to(part.units.device)[part.units]
            for name, part in region.parts.items()
            if part.units is not None
        }
    masks = {}
    for name, own in mask.items():
        flat = torch.zeros(own.numel(), dtype=torch.bool)
        flat[_distinct(own.numel(), int(own.sum()), generator)] = True
        masks[name] = flat.reshape(own.shape).to(own.device)
    return masks


def _distinct(size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` distinct places below ``size``; redrawing repeats, so a few among many cost little memory."""
    if count * 4 > size:
        return torch.randperm(size, generator=generator)[:count]
    places = torch.empty(0, dtype=torch.long)
    while len(places) < count:
        drawn = torch.randint(size, (count - len(places),), generator=generator)
        places = torch.cat([places, drawn]).unique()
    return places
