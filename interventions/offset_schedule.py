"""A steering vector whose strength follows a schedule over the generated text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from interventions.base import SiteIntervention
from interventions.checks import Layer, as_tensor, check_width, resolved, site_in, wide_kind
from interventions.scope import Change
from interventions.strength import Amount, Number, Prepared, working
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.stats.controls import random_directions
from workbench.typing import Tensor


class ScheduleWarning(UserWarning):
    """A schedule is longer than the text that it steers."""


@method(
    "offset-schedule",
    group="directions",
    question="What if steering rises, falls or changes over the text?",
    kind="intervention",
    papers=("Learning to Generate Research Idea with Dynamic Control",),
)
@dataclass(frozen=True, eq=False, repr=False)
class OffsetSchedule(SiteIntervention):
    """h + strength * w(n) * vector, where n counts the tokens behind the prompt and w is a line through ``weights``.

    ``weights`` are the schedule's knots, the first at the last prompt token, the next ``every`` tokens on and so forth,
    with straight lines between; behind the last knot its weight stays. Before the prompt's end w is ``prompt``. Dynamic
    control over several attributes is several of these in one recipe, each with a schedule of its own.

    Example:
        ``iv.OffsetSchedule(12, vector, weights=[0, 1, 0], every=16)`` rises over 16 tokens and falls over the next 16.
    """

    layer: Layer
    vector: Tensor
    weights: Sequence[Number]
    every: int = 8
    prompt: Number = 0.0
    site: str = "resid_post"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("vector", as_tensor(self.vector, "The schedule's vector", ndim=(1,)))
        self._set("weights", tuple(float(weight) for weight in self.weights))
        self._set("site", wide_kind(self.site))
        if not self.weights or not all(map(math.isfinite, (*self.weights, self.prompt))):
            raise UserError("A schedule needs one weight or more, all finite numbers.")
        if self.every < 1:
            raise UserError(f"every is {self.every}: knots lie one token or more apart.")

    def validate(self, model: AdaptedModel) -> None:
        """The layer and the site must exist, and the width must be the model's."""
        site_in(model, self.site, self.layer)
        check_width("The schedule's vector", self.vector, model.d_model)

    def stand_ins(self, model: AdaptedModel, draws: int, seed: int) -> list[OffsetSchedule] | None:  # noqa: ARG002
        """Random vectors of the same norm, by the same schedule."""
        return [
            replace(self, vector=random_direction)
            for random_direction in random_directions(self.vector, draws=draws, seed=seed)
        ]

    def at(self, n: int) -> float:
        """The weight ``n`` tokens behind the last prompt token; of a negative n that of the prompt."""
        return float(self._weights(torch.tensor([n]))[0])

    def _weights(self, n: Tensor) -> Tensor:
        knots = torch.tensor(self.weights, dtype=torch.float32, device=n.device)
        place = (n.float() / self.every).clamp(0, len(knots) - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=len(knots) - 1)
        between = torch.lerp(knots[low], knots[high], place - low)
        return torch.where(n < 0, float(self.prompt), between)

    def _check_reach(self, most: int | None) -> None:
        """Say when the text ends before the schedule does."""
        last = (len(self.weights) - 1) * self.every
        if most is None or last <= most:
            return
        idle = sum(place * self.every > most for place in range(len(self.weights)))
        warnings.warn(
            f"The schedule's last weight is for {last} tokens behind the prompt, and the text ends after {most} at "
            f"most: {idle} of {len(self.weights)} weights are never reached. Give a larger max_new_tokens, or a "
            "smaller every.",
            ScheduleWarning,
            stacklevel=2,
        )

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One addition at one site."""
        amount = Amount(self.strength)
        vector = Prepared.constant(lambda: self.vector, trained=self._trains(self.vector))

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            if ctx.start == 0 and ctx.generation is not None:
                self._check_reach(ctx.generation.most)
            n = ctx.index - (ctx.prompt_lengths[:, None] - 1)
            weight = self._weights(n)[..., None].to(working(value.dtype)) * amount(value, ctx)
            return (value.to(weight.dtype) + weight * vector(value, ctx)).to(value.dtype)

        return [(Site(self.site, resolved(model, self.layer)), change)]
