"""Concept directions removed from the residual stream, in forward, generation and training (CAFT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interventions.base import SiteIntervention
from interventions.checks import Layer, as_tensor, check_width, site_in, wide_kind
from interventions.directions import independent, orthonormal
from interventions.scope import Change
from interventions.strength import Amount, Prepared
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@method(
    "concept-ablation",
    group="directions",
    question="What if the model cannot use a direction?",
    kind="intervention",
    papers=("Steering Out-of-Distribution Generalization with Concept Ablation Fine-Tuning",),
)
@dataclass(frozen=True, eq=False, repr=False)
class ConceptAblation(SiteIntervention):
    """h - strength * (h - mean) Q Q^T, Q an orthonormal basis of ``directions`` (CAFT, Casademunt et al. 2025).

    ``directions`` [k, d_model] or [d_model] need not be orthonormal; dependent ones are left out with a
    :class:`RankWarning`. ``mean`` [d_model]: what the coordinates are set to; None sets them to zero. ``strength``
    is the fraction removed. Projections are computed in float32, or float64 beside float64.
    """

    layer: Layer
    directions: Tensor
    site: str = "resid_post"
    mean: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        directions = as_tensor(self.directions, "The concept's directions", ndim=(1, 2))
        directions = directions if directions.ndim == 2 else directions[None]
        self._set("directions", independent(directions, "ConceptAblation"))
        self._set("site", wide_kind(self.site))
        if self.mean is not None:
            self._set("mean", as_tensor(self.mean, "The concept's mean", ndim=(1,)))

    @property
    def neutral(self) -> bool:
        """No strength or no direction."""
        return super().neutral or len(self.directions) == 0

    def validate(self, model: AdaptedModel) -> None:
        """The layer and the site must exist, and the widths be the model's."""
        site_in(model, self.site, self.layer)
        check_width("The concept's directions", self.directions, model.d_model)
        if self.mean is not None:
            check_width("The concept's mean", self.mean, model.d_model)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One projection at one site."""
        amount = Amount(self.strength)
        basis = Prepared.constant(lambda: orthonormal(self.directions), trained=self._trains(self.directions))
        centre = torch.zeros(()) if self.mean is None else self.mean
        mean = Prepared.constant(lambda: centre, trained=self._trains(centre))

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            q = basis(value, ctx)
            h = value.to(q.dtype)
            off = h if self.mean is None else h - mean(value, ctx)
            return (h - amount(value, ctx) * ((off @ q.T) @ q)).to(value.dtype)

        return [(site_in(model, self.site, self.layer), change)]
