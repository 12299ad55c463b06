"""A vector added to the residual stream or to what a sublayer writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interventions.base import SiteIntervention
from interventions.checks import Layer, as_tensor, check_width, resolved, site_in, wide_kind
from interventions.scope import Change
from interventions.strength import Amount, Number, Prepared, working
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

Units = Literal["raw", "fraction", "norm"]
_UNITS = ("raw", "fraction", "norm")


@method(
    "offset",
    group="directions",
    question="What if a vector is added to the residual stream?",
    kind="intervention",
)
@dataclass(frozen=True, eq=False, repr=False)
class Offset(SiteIntervention):
    """h + strength * vector, with ``vector`` [d_model], at a site of width d_model (steering vectors).

    ``units`` of the strength: ``raw``, the vector as it is; ``norm``, multiples of the site's mean norm, which is
    ``site_norm`` (measure it with :func:`interventions.mean_norm`), along the vector's direction; ``fraction``, of
    each token's own norm. ``match_norm`` then rescales every changed token to the norm that it had.
    """

    layer: Layer
    vector: Tensor
    site: str = "resid_post"
    units: Units = "raw"
    site_norm: Number | None = None
    match_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("vector", as_tensor(self.vector, "The offset's vector", ndim=(1,)))
        self._set("site", wide_kind(self.site))
        if self.units not in _UNITS:
            raise unknown_name("unit of strength", self.units, _UNITS)
        if self.units == "norm" and not (self.site_norm is not None and self.site_norm > 0):
            raise UserError('units="norm" needs site_norm > 0: measure it with interventions.mean_norm.')
        if self.units != "raw" and not bool(self.vector.detach().any()):
            raise UserError(f"A zero vector has no direction: units={self.units!r} needs one.")

    def validate(self, model: AdaptedModel) -> None:
        """The layer and the site must exist, and the width must be the model's."""
        site_in(model, self.site, self.layer)
        check_width("The offset's vector", self.vector, model.d_model)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One addition at one site."""
        amount = Amount(self.strength)
        step = Prepared(
            lambda value, ctx: self._step(value, ctx, amount), trained=self._trains(self.vector), rows=amount.per_row
        )

        def plain(value: Tensor, ctx: ForwardContext) -> Tensor:
            return value + step(value, ctx)

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            added = step(value, ctx)
            if self.units == "fraction":
                added = (added * _norms(value)).to(value.dtype)
            new = value + added
            return _with_norm_of(value, new) if self.match_norm else new

        simple = self.units != "fraction" and not self.match_norm
        return [(Site(self.site, resolved(model, self.layer)), plain if simple else change)]

    def _step(self, value: Tensor, ctx: ForwardContext, amount: Amount) -> Tensor:
        """[d_model], or [batch, 1, d_model] with a strength per row."""
        vector = self.vector.to(value.device, working(value.dtype))
        if self.units != "raw":
            vector = vector / vector.norm()
        if self.units == "norm":
            assert self.site_norm is not None
            vector = vector * self.site_norm
        step = vector * amount(value, ctx)
        return step if self.units == "fraction" else step.to(value.dtype)


def _norms(value: Tensor) -> Tensor:
    return value.to(working(value.dtype)).norm(dim=-1, keepdim=True)


def _with_norm_of(old: Tensor, new: Tensor) -> Tensor:
    scale = _norms(old) / _norms(new).clamp(min=1e-30)
    return (new.to(scale.dtype) * scale).to(old.dtype)
