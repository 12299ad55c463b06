"""A knob: the coordinates of the residual stream in a subspace, set, swapped from another run, or moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from interventions.base import SiteIntervention
from interventions.checks import Layer, as_tensor, check_width, site_in, wide_kind
from interventions.claims import Claim
from interventions.directions import independent, orthonormal
from interventions.scope import Change
from interventions.source_run import Align, Aligned, check_alignment, record_run
from interventions.strength import Amount, Number, Prepared, for_rows, working
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_MODES = ("set", "add", "swap")


@method(
    "subspace-knob",
    group="directions",
    question="What if a coordinate in a subspace is set?",
    kind="intervention",
    papers=("Controllable Context Sensitivity and the Knob Behind It",),
)
@dataclass(frozen=True, eq=False, repr=False)
class SubspaceKnob(SiteIntervention):
    """h + strength * (target - h U^T) U, U [rank, d_model] an orthonormal basis of ``direction`` (Minder et al. 2024).

    ``direction``: [d_model] or [rank, d_model]. ``mode`` names the target coordinates: ``set``, they become
    ``value``; ``add``, ``value`` is added to them; ``swap``, they become those of ``source``, activations of
    another run ([d_model], [row, d_model], or [row, pos, d_model] with ``lengths`` [row]; DAS, interchange).
    ``value``: a number, [rank], or one per prompt, [row, rank] (for rank 1 also [row]).
    """

    layer: Layer
    direction: Tensor
    value: Number | Sequence[Number] | Tensor | None = None
    mode: Literal["set", "add", "swap"] = "set"
    site: str = "resid_post"
    source: Tensor | None = None
    lengths: Tensor | None = None
    align: Align = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        direction = as_tensor(self.direction, "The knob's direction", ndim=(1, 2))
        direction = independent(direction if direction.ndim == 2 else direction[None], "SubspaceKnob")
        if not len(direction):
            raise UserError("A zero vector has no direction: a knob needs at least one.")
        self._set("direction", direction)
        self._set("site", wide_kind(self.site))
        check_alignment(self.align)
        if self.mode not in _MODES:
            raise unknown_name("mode of a knob", self.mode, _MODES)
        if self.mode == "swap":
            if self.source is None or self.value is not None:
                raise UserError('mode="swap" takes source= (activations of another run) and no value.')
            self._set("source", as_tensor(self.source, "The knob's source", ndim=(1, 2, 3)))
        else:
            if self.source is not None or self.value is None:
                raise UserError(f'mode="{self.mode}" takes value= (the coordinates) and no source.')
            self._set("value", self._coordinates(len(direction)))

    @classmethod
    def from_run(
        cls,
        model: AdaptedModel,
        prompts: Any,
        layer: Layer,
        direction: Tensor,
        *,
        site: str = "resid_post",
        **options: Any,
    ) -> SubspaceKnob:
        """The knob that swaps in the coordinates which ``model`` has on ``prompts``."""
        run = record_run(model, prompts, site, layer)
        made = cls(layer, direction, mode="swap", site=site, source=run.values, lengths=run.lengths)
        return replace(made, **options)

    def validate(self, model: AdaptedModel) -> None:
        """The layer and the site must exist, and the widths be the model's."""
        site_in(model, self.site, self.layer)
        check_width("The knob's direction", self.direction, model.d_model)
        if self.source is not None:
            check_width("The knob's source", self.source, model.d_model)

    def claims(self, model: AdaptedModel) -> list[Claim]:
        """Setting and swapping decide the coordinates; adding does not."""
        if self.mode == "add":
            return []
        return [
            Claim(site_in(model, self.site, self.layer), "sets the coordinate", orthonormal(self.direction.detach()))
        ]

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One move inside the subspace at one site."""
        amount = Amount(self.strength)
        basis = Prepared.constant(lambda: orthonormal(self.direction), trained=self._trains(self.direction))
        target = self._target(basis)

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            u = basis(value, ctx)
            h = value.to(u.dtype)
            wanted, present = target(value, ctx)
            move = wanted if self.mode == "add" else wanted - h @ u.T
            new = (h + amount(value, ctx) * (move @ u)).to(value.dtype)
            return new if present is None else torch.where(present[..., None], new, value)

        return [(site_in(model, self.site, self.layer), change)]

    def _target(self, basis: Prepared) -> Any:
        """(value, ctx) -> (coordinates broadcastable to [batch, pos, rank], where there are any)."""
        if self.source is not None:
            aligned = Aligned(self.source, self.lengths, 1, self.align)

            def swapped(value: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor | None]:
                recorded, present = aligned(value, ctx)
                u = basis(value, ctx)
                return recorded.to(u.dtype) @ u.T, present

            return swapped
        target = self.value
        assert isinstance(target, Tensor)

        def build(value: Tensor, ctx: ForwardContext) -> Tensor:
            there = target.to(value.device, working(value.dtype))
            return for_rows(there, ctx, "values of the knob").unsqueeze(1) if there.ndim == 2 else there

        constant = Prepared(build, trained=self._trains(target), rows=target.ndim == 2)
        return lambda value, ctx: (constant(value, ctx), None)

    def _coordinates(self, rank: int) -> Tensor:
        """``value`` as [rank] or [row, rank]."""
        tensor = as_tensor(self.value, "The knob's value", ndim=(0, 1, 2))
        if tensor.ndim == 0:
            return tensor.repeat(rank)
        if tensor.ndim == 1 and rank == 1 and len(tensor) != 1:
            return tensor[:, None]
        if tensor.shape[-1] != rank:
            raise UserError(
                f"The knob's value has shape {list(tensor.shape)}, but its subspace has {rank} dimensions: give one "
                "number per dimension, or [row, dimension]."
            )
        return tensor
