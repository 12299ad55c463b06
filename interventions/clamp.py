"""A coordinate of the residual stream held inside an interval, from both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from interventions.base import SiteIntervention
from interventions.checks import Layer, as_tensor, check_width, site_in, wide_kind
from interventions.claims import Claim
from interventions.directions import orthonormal
from interventions.scope import Change
from interventions.strength import Amount, Number, Prepared
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@method(
    "clamp",
    group="activations",
    question="What if a site is held at given values?",
    kind="intervention",
)
@dataclass(frozen=True, eq=False, repr=False)
class Clamp(SiteIntervention):
    """The coordinate along ``direction`` [d_model] (normalised by us) is moved into [``low``, ``high``].

    Coordinates inside stay as they are, those outside land on the nearer bound, whatever their sign; equal
    bounds set the coordinate to that value. None leaves a side open. ``strength`` is the fraction of the way.
    """

    layer: Layer
    direction: Tensor
    low: Number | None = None
    high: Number | None = None
    site: str = "resid_post"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("direction", as_tensor(self.direction, "The clamp's direction", ndim=(1,)))
        self._set("site", wide_kind(self.site))
        if not bool(self.direction.detach().any()):
            raise UserError("A zero vector has no direction: a clamp needs one.")
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not all(math.isfinite(bound) for bound in bounds):
            raise UserError("A clamp's bounds are finite numbers, or None for an open side.")
        if len(bounds) == 2 and bounds[0] > bounds[1]:
            raise UserError(f"The clamp's low {bounds[0]} lies above its high {bounds[1]}: exchange them.")

    @property
    def neutral(self) -> bool:
        """No strength or no bounds."""
        return super().neutral or (self.low is None and self.high is None)

    def validate(self, model: AdaptedModel) -> None:
        """The layer and the site must exist, and the width be the model's."""
        site_in(model, self.site, self.layer)
        check_width("The clamp's direction", self.direction, model.d_model)

    def claims(self, model: AdaptedModel) -> list[Claim]:
        """With equal bounds it sets the coordinate."""
        if self.low is None or self.low != self.high:
            return []
        basis = orthonormal(self.direction.detach()[None])
        return [Claim(site_in(model, self.site, self.layer), "sets the coordinate", basis)]

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One move along the direction at one site."""
        amount = Amount(self.strength)
        unit = Prepared.constant(lambda: orthonormal(self.direction[None])[0], trained=self._trains(self.direction))

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            u = unit(value, ctx)
            h = value.to(u.dtype)
            coordinate = h @ u
            move = coordinate.clamp(self.low, self.high) - coordinate
            return (h + (amount(value, ctx) * move.unsqueeze(-1)) * u).to(value.dtype)

        return [(site_in(model, self.site, self.layer), change)]
