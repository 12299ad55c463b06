"""Whole layers left out, row by row where wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from interventions.base import SiteIntervention
from interventions.checks import Layer, resolved, site_in
from interventions.scope import Change
from interventions.strength import Amount, working
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@method(
    "layer-skip",
    group="layers",
    question="What if whole layers are left out?",
    kind="intervention",
    papers=("Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",),
)
@dataclass(frozen=True, eq=False, repr=False)
class LayerSkip(SiteIntervention):
    """What goes into a layer comes out of it, at the chosen positions. ``strength`` is the fraction of the way.

    Other positions still attend to the skipped ones' keys and values in that layer, as in early exit and layer-skipping
    models that keep one cache.
    """

    layers: Sequence[Layer]

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = [self.layers] if isinstance(self.layers, int | float | str) else list(self.layers)
        self._set("layers", tuple(layers))

    @property
    def neutral(self) -> bool:
        """No strength or no layers."""
        return super().neutral or not self.layers

    def validate(self, model: AdaptedModel) -> None:
        """Every layer must exist, once."""
        layers = [resolved(model, layer) for layer in self.layers]
        if len(set(layers)) < len(layers):
            raise UserError("A layer is named twice among those to be skipped: name each once.")
        for layer in layers:
            site_in(model, "resid_post", layer)

    def stand_ins(self, model: AdaptedModel, draws: int, seed: int) -> list[LayerSkip] | None:
        """As many other layers."""
        skipped = {resolved(model, layer) for layer in self.layers}
        others = [layer for layer in range(model.n_layers) if layer not in skipped]
        if len(others) < len(skipped):
            return None
        rng = np.random.default_rng(seed)
        picked = [rng.choice(others, size=len(skipped), replace=False) for _ in range(draws)]
        return [replace(self, layers=sorted(int(layer) for layer in layers)) for layers in picked]

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """Per layer: what goes in is kept, and comes out."""
        return [step for layer in self.layers for step in self._around(model, resolved(model, layer))]

    def _around(self, model: AdaptedModel, layer: int) -> list[tuple[Site, Change]]:
        key, amount = ("layer skip", id(self), layer), Amount(self.strength)

        def keep(value: Tensor, ctx: ForwardContext) -> None:
            ctx.scratch[key] = value

        def put(value: Tensor, ctx: ForwardContext) -> Tensor:
            before = ctx.scratch[key].to(value.device)
            share = amount(value, ctx)
            if isinstance(share, float) and share == 1.0:
                return before
            exact = value.to(working(value.dtype))
            return (exact + share * (before.to(exact.dtype) - exact)).to(value.dtype)

        return [(site_in(model, "resid_pre", layer), keep), (site_in(model, "resid_post", layer), put)]
