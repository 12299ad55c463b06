"""Gates: an intervention acts only where a linear probe fires (conditional activation steering, Lee et al. 2024).

A gate reads the residual stream (or what a sublayer writes) at a site that is computed no later than the one it
opens, so what it opens cannot change its reading at that token. Every reach is causal: a token's decision needs that
token and earlier ones alone, and decoding with the key/value cache gives what a whole pass gives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch

from interventions.checks import Layer, as_tensor, check_width, resolved, site_in, wide_kind
from interventions.scope import tell_unknown_prompt
from interventions.strength import Prepared
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import Where
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Tensor

Reach = Literal["prompt", "onward", "token"]
_REACHES = ("prompt", "onward", "token")


@dataclass(frozen=True, eq=False, repr=False)
class Gate:
    """Open where h . ``direction`` >= ``threshold`` (with ``fires="below"``: <=), for ``when=`` of an intervention.

    Interventions with equal gates share one reading per forward pass. Fit one with :func:`probes.fit_gate`. Example::

        iv.Offset(20, refuse, when=iv.Gate(12, harmful, 3.5))

    Args:
        layer: Where it reads: an index or a fraction of the depth.
        direction: [d_model], used as it is (not normalised).
        threshold: In units of the projection.
        site: A site of width d_model.
        fires: ``above`` the threshold or ``below`` it; the threshold itself counts.
        reach: ``prompt``: the prompt's last token decides for that token and all that come after; ``onward``: from
            the first token on which it fires to the end of the row; ``token``: every token decides for itself.
    """

    layer: Layer
    direction: Tensor
    threshold: float
    site: str = "resid_post"
    fires: Literal["above", "below"] | str = "above"
    reach: Reach | str = "prompt"

    def __post_init__(self) -> None:
        direction = as_tensor(self.direction, "The gate's direction", ndim=(1,)).detach()
        if not bool(direction.any()):
            raise UserError("The gate's direction is a zero vector, which reads nothing: give one that is not zero.")
        threshold = as_tensor(self.threshold, "The gate's threshold", ndim=(0,))
        if self.fires not in ("above", "below"):
            raise unknown_name("side of a gate's threshold", self.fires, ("above", "below"))
        if self.reach not in _REACHES:
            raise unknown_name("reach of a gate", self.reach, _REACHES)
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "threshold", float(threshold))
        object.__setattr__(self, "site", wide_kind(self.site))

    @cached_property
    def key(self) -> str:
        """Sha256 in hex of settings and direction: equal gates have equal keys."""
        settings = [getattr(self, field.name) for field in fields(self) if field.name != "direction"]
        direction = self.direction.cpu().double().contiguous().numpy().tobytes()
        return hashlib.sha256(repr(settings).encode() + direction).hexdigest()

    def validate(self, model: AdaptedModel) -> None:
        """Raise :class:`UserError` where ``model`` has no such site or another width."""
        site_in(model, self.site, self.layer)
        check_width("The gate's direction", self.direction, model.d_model)

    def check_before(self, sites: list[Site], model: AdaptedModel) -> None:
        """Raise :class:`UserError` when a site that the gate opens is computed before the gate has read."""
        read = Site(self.site, resolved(model, self.layer))
        for site in sites:
            if site.order < read.order:
                raise UserError(
                    f"The gate reads {read.name}, which is computed after {site.name}, where it is to act: let it "
                    "read an earlier layer, or act at a later one."
                )

    def hook(self, model: AdaptedModel) -> SiteHook:
        """A hook that changes nothing and leaves the decision of this pass for :meth:`open`."""
        reading = _Reading(self)

        def read(value: Tensor, ctx: ForwardContext) -> None:
            if self._name not in ctx.scratch:
                ctx.scratch[self._name] = reading(value, ctx)

        # an edit, for edits run in the order of the recipe: it reads what the intervention it opens is given
        return SiteHook(site_in(model, self.site, self.layer), read, edit=True)

    def open(self, ctx: ForwardContext) -> Bool[Tensor, "batch pos"]:
        """Where the gate is open among the new columns of this pass."""
        mask: Tensor | None = ctx.scratch.get(self._name)
        if mask is None:
            raise NotSupported("The gate's site was not computed in this pass, so nobody knows whether it is open.")
        return mask

    @cached_property
    def _name(self) -> str:
        return f"gate {self.key}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gate) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        sign = ">=" if self.fires == "above" else "<="
        return f"Gate({self.site} of layer {self.layer} {sign} {self.threshold:.4g}, {self.reach})"


class _Reading:
    """A gate while a recipe is applied: what it decided about tokens that the cache holds now."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.direction = Prepared.constant(lambda: gate.direction)
        self.seen: Tensor | None = None
        """``onward``: where it fired [batch, column]; ``prompt``: whether it did [batch]."""

    def __call__(self, value: Tensor, ctx: ForwardContext) -> Bool[Tensor, "batch pos"]:
        fired = self._fired(value, ctx) & ctx.real.to(value.device)
        if self.gate.reach == "token":
            return fired
        return self._onward(fired, ctx) if self.gate.reach == "onward" else self._by_prompt(fired, ctx)

    def _fired(self, value: Tensor, ctx: ForwardContext) -> Tensor:
        with torch.no_grad():
            direction = self.direction(value, ctx)
            along = value.to(direction.dtype) @ direction
        return along >= self.gate.threshold if self.gate.fires == "above" else along <= self.gate.threshold

    def _onward(self, fired: Tensor, ctx: ForwardContext) -> Tensor:
        before = self._remembered(ctx, ctx.start, 2)
        if before is not None and ctx.generation is not None and ctx.generation.beams > 1:
            raise NotSupported(
                "Beam search exchanges rows between steps, so a gate cannot remember where it fired: use "
                'reach="prompt", or generate without beams.'
            )
        whole = fired if before is None else torch.cat([before[:, : ctx.start], fired], dim=1)
        self.seen = whole
        return (whole.long().cumsum(1) > 0)[:, -fired.shape[1] :] & ctx.real

    def _by_prompt(self, fired: Tensor, ctx: ForwardContext) -> Tensor:
        if ctx.loose is not None:
            tell_unknown_prompt(Where("prompt"), ctx)
        end = ctx.prompt_lengths[:, None] - 1
        last = (ctx.index == end) & ctx.real
        before = self._remembered(ctx, 0, 1)
        decided = (fired & last).any(1)
        if before is not None:
            decided = torch.where(last.any(1), decided, before)
        self.seen = decided
        return decided[:, None] & (ctx.index >= end) & ctx.real

    def _remembered(self, ctx: ForwardContext, columns: int, ndim: int) -> Tensor | None:
        """What was decided before this pass; None at the start of a text."""
        if ctx.start == 0:
            return None
        seen = self.seen
        if seen is None or seen.ndim != ndim or len(seen) != ctx.batch or (ndim == 2 and seen.shape[1] < columns):
            raise NotSupported("A gate must have read the whole text: enter the recipe before the prompt runs.")
        return seen.to(ctx.device)
