"""Chosen fine-tuned weights on the base model (skill localisation by grafting, Panigrahi et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.base import Intervention
from interventions.strength import Number, Strength
from interventions.weightspace.masks import complement
from interventions.weightspace.swapping import base_parameters, check_same_shape, find_parameter, one_strength, swapped
from interventions.weightspace.tuned_values import changed_names, tuned_values
from workbench.cards import counted
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor


@method(
    "graft",
    group="weights",
    question="What if the base has chosen tuned weights?",
    kind="intervention",
    papers=("Task-Specific Skill Localization in Fine-tuned Language Models",),
)
@dataclass(frozen=True, eq=False, repr=False)
class Graft(Intervention):
    """select(mask, tuned, base): the model's weights, with the tuned values at the chosen entries, bit for bit.

    ``mask``: parameter name -> bool tensor of its shape, flat int64 coordinates, or None for the whole tensor.
    ``tuned``: the same names -> the whole tuned tensor, or only its values at the chosen entries, in their order.
    A ``strength`` below 1 moves the chosen entries only part of the way.
    """

    mask: Mapping[str, Tensor | None]
    tuned: Mapping[str, Tensor]
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        if set(self.mask) != set(self.tuned):
            odd = sorted(set(self.mask) ^ set(self.tuned))[0]
            raise UserError(f"{odd} is in only one of mask and tuned: give both under the same names.")
        parts = {name: _compact(name, self.mask[name], self.tuned[name]) for name in self.mask}
        object.__setattr__(self, "strength", one_strength(self.strength))
        object.__setattr__(self, "mask", {name: where for name, (where, _) in parts.items()})
        object.__setattr__(self, "tuned", {name: values for name, (_, values) in parts.items()})

    @classmethod
    def from_pair(cls, pair: Any, mask: Mapping[str, Tensor | None] | None = None) -> Graft:
        """The tuned model's values at ``mask`` (default: everything that differs), for ``pair.base``.

        Of an adapter, each value is the base's plus the change the adapter makes, rounded to the base's dtype.
        """
        masks = dict.fromkeys(changed_names(pair)) if mask is None else mask
        return cls(masks, tuned_values(pair, masks))

    @classmethod
    def complement_of(cls, pair: Any, mask: Mapping[str, Tensor]) -> Graft:
        """Everything that differs between the pair's models except ``mask``: what is left without the region."""
        rest = complement(pair.base, mask, changed_names(pair)) if changed_names(pair) else {}
        return cls.from_pair(pair, rest)

    def inverse(self, base: AdaptedModel) -> Graft:
        """The base's values at the same entries: applied to the tuned model it takes the region out again."""
        parameters = base_parameters(base.hf)
        return Graft(self.mask, {name: find_parameter(parameters, name).data for name in self.mask})

    @property
    def size(self) -> int:
        """How many entries are grafted."""
        return sum(values.numel() for values in self.tuned.values())

    def validate(self, model: AdaptedModel) -> None:
        """Every tensor must exist with its shape."""
        parameters = base_parameters(model.hf)
        for name, where in self.mask.items():
            parameter, values = find_parameter(parameters, name), self.tuned[name]
            if where is None:
                check_same_shape(name, values, parameter)
            elif where.dtype == torch.bool and where.shape != parameter.shape:
                check_same_shape(name, where, parameter)
            elif where.dtype != torch.bool and where.numel() and int(where[-1]) >= parameter.numel():
                raise UserError(
                    f"The graft changes entry {int(where[-1])} of {name}, which has {parameter.numel()} entries "
                    "in this model: it was made for another model."
                )

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The chosen entries hold the tuned values inside; the original tensors come back after."""
        with model.active(), model.hub.guarded(), swapped(self._weights(model) if self._share else {}):
            yield

    @property
    def _share(self) -> float:
        return one_strength(self.strength)

    def scaled(self, factor: Number) -> Graft:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=self._share * factor)

    def __repr__(self) -> str:
        part = "" if self._share == 1 else f", strength={self._share:g}"
        return f"Graft({self.size} entries of {counted(len(self.mask), 'tensor')}{part})"

    @torch.no_grad()
    def _weights(self, model: AdaptedModel) -> dict[torch.nn.Parameter, Tensor]:
        parameters = base_parameters(model.hf)
        targets = {name: find_parameter(parameters, name) for name in self.mask}
        return {parameter: self._grafted(name, parameter.data) for name, parameter in targets.items()}

    def _grafted(self, name: str, base: Tensor) -> Tensor:
        where, values = self.mask[name], self.tuned[name].to(base.device)
        if where is None:
            return part_way(base, values.to(base.dtype), self._share)
        grafted, where = base.clone().reshape(-1), where.to(base.device).reshape(-1)
        grafted[where] = part_way(grafted[where], values.to(base.dtype), self._share)
        return grafted.view(base.shape)


def part_way(base: Float[Tensor, "*shape"], tuned: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """``base`` moved by ``share`` towards ``tuned``; at 0 and 1 the tensors themselves, bit for bit."""
    if share in (0.0, 1.0):
        return tuned if share else base
    exact = torch.float64 if base.dtype == torch.float64 else torch.float32
    return (base.to(exact) + share * (tuned.to(exact) - base.to(exact))).to(base.dtype)


def _compact(name: str, where: Tensor | None, tuned: Tensor) -> tuple[Tensor | None, Tensor]:
    """Where and which values, without the values that are not used; finite."""
    if where is not None and not (where.dtype == torch.bool or where.dtype == torch.int64):
        raise UserError(f"The mask of {name} is {where.dtype}: give bool entries or int64 flat coordinates.")
    if where is not None and where.dtype == torch.int64:
        where, order = where.reshape(-1).sort()
        if where.numel() and (int(where[0]) < 0 or bool((where[1:] == where[:-1]).any())):
            raise UserError(f"The coordinates of {name} must be distinct and count from 0.")
        per_entry = tuned.ndim == 1 and len(tuned) == len(where)
        if not per_entry and where.numel() and int(where[-1]) >= tuned.numel():
            raise UserError(
                f"The mask names entry {int(where[-1])} of {name}, which has {tuned.numel()} entries: it was made for "
                "another model."
            )
        tuned = tuned.reshape(-1)[order] if per_entry else tuned.reshape(-1)[where]
    elif where is not None and tuned.shape == where.shape:
        tuned = tuned[where.to(tuned.device)]
    elif where is not None and tuned.shape != (int(where.sum()),):
        raise UserError(
            f"{name}: the mask is {list(where.shape)} with {int(where.sum())} entries, but there are "
            f"{list(tuned.shape)} tuned values: give the whole tensor or one value per entry."
        )
    if not bool(torch.isfinite(tuned).all()):
        raise UserError(f"The tuned values of {name} are not finite (NaN or infinity): make the graft again.")
    return where, tuned.detach()
