"""The mean norm of a site's values: the unit in which a strength means the same across layers and models."""

from __future__ import annotations

from typing import Any

import torch

from interventions.checks import Layer, site_in, wide_kind
from interventions.scope import Scope
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import PositionSpec, Where
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.typing import Tensor


def mean_norm(
    model: AdaptedModel,
    prompts: Any,
    layer: Layer,
    site: str = "resid_post",
    *,
    positions: PositionSpec | Where = "content",
) -> float:
    """Mean norm of a site of width d_model over ``prompts``; give it to ``Offset(units="norm", site_norm=...)``.

    Attention sinks are left out by default (the first token, special tokens, the chat template's): many models park
    norms there that are many times those of the others.
    """
    batch = prompts if isinstance(prompts, Encoded | Tensor) else model.encode(prompts)
    scope, all_norms = Scope(positions), []

    def keep(value: Tensor, ctx: ForwardContext) -> None:
        selection = scope(ctx)
        norms = value.detach().float().norm(dim=-1)
        all_norms.append(norms.flatten() if selection.everything else norms[ctx.real & _chosen(selection.mask, ctx)])

    with model.hooked([SiteHook(site_in(model, wide_kind(site), layer), keep)], stop=True):
        model.forward(batch, logits=None)
    norms = torch.cat(all_norms)
    if not len(norms):
        raise UserError(f"No position of these prompts is in {positions!r}: give longer prompts or other positions.")
    return float(norms.mean())


def _chosen(mask: Tensor | None, ctx: ForwardContext) -> Tensor:
    return torch.zeros_like(ctx.real) if mask is None else mask
