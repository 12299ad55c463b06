"""Cuts the weights of a pair into the units of a level: rows, heads, modules, LoRA ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from interventions.weightspace.swapping import base_parameters
from interventions.weightspace.tuned_values import changed_names, tuned_values
from probes.grafting.regions import Level, Part, RankPart, Region, region_of, sized
from probes.weights.naming import Layout, place_of
from workbench.errors import NotSupported, UserError
from workbench.models import weight_changes
from workbench.typing import Int, Tensor


def pair_region(pair: Any, level: Level) -> Region:
    """The changed weights inside the layers of a pair; embeddings and the head are left out, as in the paper.

    Raises :class:`UserError` when nothing differs there and :class:`NotSupported` for ranks of what is no LoRA.
    """
    names = [name for name in changed_names(pair) if place_of(name).layer is not None]
    if not names:
        raise UserError("The two models do not differ inside any layer: there is nothing to graft.")
    known, values = base_parameters(pair.base.hf), tuned_values(pair, names)
    base = {name: known[name].data for name in names}
    tuned = {name: value.to(base[name].device) for name, value in values.items()}
    layout = Layout.of(pair.base.inner.config.to_dict())
    if level == "entries":
        return region_of(base, tuned)
    if level == "ranks":
        return _rank_region(pair, base, tuned)
    if level == "heads":
        if layout.no_heads:
            raise UserError(f"The change cannot be cut by head; take level='modules'. {layout.no_heads}")
        region = region_of(base, tuned, lambda name, tensor: _head_units(layout, name, tensor), reserved=True)
        if int(region.sizes[1:].sum() if region.sizes is not None else 0) == 0:
            raise UserError("Tuning changed no weight that belongs to a single head; take level='modules'.")
        return region
    counter = _Numbers()
    return region_of(base, tuned, lambda name, tensor: counter.units(layout, name, tensor, whole=level == "modules"))


class _Numbers:
    """Numbers rows or whole modules; a weight and its bias share theirs."""

    def __init__(self) -> None:
        self.first: dict[tuple[int | None, str, int | None], int] = {}
        self.next = 0

    def units(self, layout: Layout, name: str, tensor: Tensor, *, whole: bool) -> Int[Tensor, "*unit"]:
        place = place_of(name)
        turned = layout.turned(place.module, tensor.ndim)
        shape = tensor.mT.shape if turned else tensor.shape
        rows = 1 if whole else shape[:-1].numel() if len(shape) > 1 else shape[0]
        key = (place.layer, place.module.removesuffix(".bias"), place.expert)
        if key not in self.first:
            self.first[key] = self.next
            self.next += rows
        numbers = torch.arange(rows, device=tensor.device) + self.first[key]
        if whole:
            return numbers.reshape([1] * tensor.ndim)
        if tensor.ndim == 1:
            return numbers
        numbers = numbers.reshape(*shape[:-1], 1)
        return numbers.mT if turned else numbers


def _head_units(layout: Layout, name: str, tensor: Tensor) -> Int[Tensor, "*unit"] | None:
    """1 + layer * heads + head for the rows (columns, for the output projection) of one query head; 0 for keys and
    values that several heads share; None for tensors without heads."""
    place = place_of(name)
    if place.layer is None:
        return None
    first = 1 + place.layer * layout.n_heads
    heads = torch.arange(layout.n_heads, device=tensor.device) + first
    weight = layout.oriented(place.module, tensor)
    if layout.is_output(place.module):
        units = heads.repeat_interleave(weight.shape[1] // layout.n_heads)[None, :]
    else:
        parts = layout.head_rows(place.module, weight.shape[0])
        if not parts:
            return None
        rows = torch.zeros(weight.shape[0], dtype=torch.long, device=tensor.device)
        for block in layout.split(place.module, rows).values():
            if len(block) == layout.n_heads:
                block.copy_(heads[:, None])
        if not bool(rows.any()):
            return None
        units = rows if tensor.ndim == 1 else rows[:, None]
    return units.mT if units.ndim == 2 and layout.turned(place.module, tensor.ndim) else units


def _rank_region(pair: Any, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Region:
    if pair.adapter is None or not pair.one_copy:
        raise NotSupported("Ranks can be grafted of a plain LoRA pair only; take level='entries' or 'modules'.")
    parts: dict[str, Part] = {}
    start = 0
    for module in weight_changes.adapted_modules(pair.adapter):
        name = f"{module}.weight"
        low_rank = weight_changes.factors(pair.adapter, module)
        if name not in base:
            continue
        if low_rank is None:
            raise NotSupported(f"The adapter at {module} is no plain LoRA, so it has no ranks; take level='modules'.")
        rank = low_rank.A.shape[0]
        units = torch.arange(rank, device=base[name].device) + start
        start += rank
        up, down = (low_rank.B.detach() * low_rank.scaling), low_rank.A.detach()
        parts[name] = RankPart(base[name], tuned[name], units, up, down)
    return sized(parts)
