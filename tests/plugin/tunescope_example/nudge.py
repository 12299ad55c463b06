"""An intervention that somebody else wrote: the residual stream moved along one direction, by a share of its norm."""

from __future__ import annotations

from dataclasses import dataclass, replace

from interventions.base import SiteIntervention
from interventions.checks import Layer, check_width, resolved, site_in
from interventions.scope import Change
from interventions.strength import Amount
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.stats.controls import random_directions
from workbench.typing import Tensor


@method("nudge", group="directions", question="What if every token is nudged along a direction?", kind="intervention")
@dataclass(frozen=True, eq=False, repr=False)
class Nudge(SiteIntervention):
    """h + strength * share * ||h|| * direction / ||direction||, after the layer."""

    layer: Layer
    direction: Tensor
    share: float = 0.1

    def validate(self, model: AdaptedModel) -> None:
        """The layer must exist, and the width must be the model's."""
        site_in(model, "resid_post", self.layer)
        check_width("The direction", self.direction, model.d_model)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One addition."""
        amount = Amount(self.strength)  # of the whole batch, or of each row

        def change(value: Tensor, context: ForwardContext) -> Tensor:
            unit = (self.direction / self.direction.norm()).to(value)
            return value + amount(value, context) * self.share * value.norm(dim=-1, keepdim=True) * unit

        return [(Site("resid_post", resolved(model, self.layer)), change)]

    def stand_ins(self, model: AdaptedModel, draws: int, seed: int) -> list[Nudge]:
        """Random directions in place of this one."""
        return [replace(self, direction=other) for other in random_directions(self.direction, draws=draws, seed=seed)]
