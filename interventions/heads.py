"""Constant vectors added to single attention heads, and heads scaled, at z (LoFiT, inference-time intervention)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interventions.base import SiteIntervention
from interventions.checks import as_label, as_tensor, by_layer, check_heads, check_width, site_in
from interventions.scope import Change
from interventions.strength import Amount, Prepared, working
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor


@method(
    "head-offset",
    group="heads",
    question="What if a vector is added to the outputs of chosen heads?",
    kind="intervention",
    papers=("LoFiT: Localized Fine-tuning on LLM Representations",),
)
@dataclass(frozen=True, eq=False, repr=False)
class HeadOffset(SiteIntervention):
    """z + strength * vector for chosen heads: LoFiT (Yin et al. 2024) and ITI (Li et al. 2023).

    ``vectors`` maps heads, as ``"L3H5"`` or (3, 5), to vectors [d_head]. Vectors that require gradients are trained.
    """

    vectors: Mapping[Any, Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        named = _by_label(self.vectors)
        self._set(
            "vectors", {head: as_tensor(vector, f"The offset of {head}", ndim=(1,)) for head, vector in named.items()}
        )

    @property
    def neutral(self) -> bool:
        """No strength or no heads."""
        return super().neutral or not self.vectors

    def validate(self, model: AdaptedModel) -> None:
        """Every head must exist and every vector have the model's d_head."""
        check_heads(model, list(self.vectors))
        for head, vector in self.vectors.items():
            check_width(f"The offset of {head}", vector, model.d_head)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One addition per layer that has chosen heads."""
        return [self._at(model, layer, heads) for layer, heads in by_layer(list(self.vectors)).items()]

    def _at(self, model: AdaptedModel, layer: int, heads: list[int]) -> tuple[Site, Change]:
        vectors = {head: self.vectors[f"L{layer}H{head}"] for head in heads}
        amount = Amount(self.strength)

        def build(value: Tensor, ctx: ForwardContext) -> Tensor:
            dense = _dense(vectors, value, torch.zeros(value.shape[-1]))
            return (dense * amount(value, ctx)).to(value.dtype)

        step = Prepared(build, trained=self._trains(*vectors.values()), rows=amount.per_row)
        return site_in(model, "z", layer), lambda value, ctx: value + step(value, ctx)


@method(
    "head-scale",
    group="heads",
    question="What if chosen heads are turned up, down or off?",
    kind="intervention",
)
@dataclass(frozen=True, eq=False, repr=False)
class HeadScale(SiteIntervention):
    """z * (1 + strength * (scale - 1)) for chosen heads: 0 switches a head off, 1 leaves it (LoFiT's stage 1).

    ``scales`` maps heads, as ``"L3H5"`` or (3, 5), to a number or a tensor [d_head].
    """

    scales: Mapping[Any, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        named = _by_label(self.scales)
        self._set(
            "scales", {head: as_tensor(scale, f"The scale of {head}", ndim=(0, 1)) for head, scale in named.items()}
        )

    @property
    def neutral(self) -> bool:
        """No strength, or every scale exactly 1 and none being trained."""
        ones = all(bool((scale.detach() == 1).all()) for scale in self.scales.values())
        return super().neutral or (ones and not self._trains(*self.scales.values()))

    def validate(self, model: AdaptedModel) -> None:
        """Every head must exist and every scale be one number or have the model's d_head."""
        check_heads(model, list(self.scales))
        for head, scale in self.scales.items():
            if scale.ndim:
                check_width(f"The scale of {head}", scale, model.d_head)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One multiplication per layer that has chosen heads."""
        return [self._at(model, layer, heads) for layer, heads in by_layer(list(self.scales)).items()]

    def _at(self, model: AdaptedModel, layer: int, heads: list[int]) -> tuple[Site, Change]:
        scales = {head: self.scales[f"L{layer}H{head}"] for head in heads}
        amount = Amount(self.strength)

        def build(value: Tensor, ctx: ForwardContext) -> Tensor:
            return 1 + amount(value, ctx) * (_dense(scales, value, torch.ones(value.shape[-1])) - 1)

        factor = Prepared(build, trained=self._trains(*scales.values()), rows=amount.per_row)
        return site_in(model, "z", layer), lambda z, ctx: (z * factor(z, ctx)).to(z.dtype)


def _by_label(values: Mapping[Any, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError('Heads are given with what happens to them: {"L3H5": vector}.')
    named = {as_label(head, "head"): value for head, value in values.items()}
    if len(named) != len(values):
        raise UserError("A head is named twice, once as a label and once as numbers: name each head once.")
    return named


def _dense(
    by_head: Mapping[int, Tensor], value: Tensor, other: Float[Tensor, " d_head"]
) -> Float[Tensor, "head d_head"]:
    """One row per head of ``value`` [batch, pos, head, d_head]: the chosen ones, ``other`` for the rest."""
    rows = [by_head.get(head, other).expand(len(other)) for head in range(value.shape[-2])]
    return torch.stack([row.to(value.device, working(value.dtype)) for row in rows])
