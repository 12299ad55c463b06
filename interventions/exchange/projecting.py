"""Directions taken out of what writes to the residual stream, where that is exactly the ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from interventions.checks import resolved
from interventions.concept_ablation import ConceptAblation
from interventions.directions import orthonormal
from workbench.engine.families import submodule
from workbench.engine.routing import find_router
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

Place = tuple[str, int]
"""(kind of site, layer)."""


def written_by(ablations: Sequence[ConceptAblation], model: AdaptedModel) -> list[tuple[list[Place], ConceptAblation]]:
    """For each set of directions, the writers whose output it is exact to project.

    Raises :class:`NotSupported` for an ablation of the residual stream at some layers only: there the stream passes
    from layer to layer without any weight.
    """
    places_of = []
    for group in dict.fromkeys(_same_directions(ablation, ablations) for ablation in ablations):
        places = [(member.site, resolved(model, member.layer)) for member in group]
        plain = [place for place in places if place[0] in ("attn_out", "mlp_out") or place == ("resid_pre", 0)]
        if len(plain) < len(places):
            plain = _everywhere(places, model, group)
        places_of.append((plain, group[0]))
    for ablation in ablations:
        if ablation.mean is not None and bool(ablation.mean.any()):
            raise NotSupported("An ablation to a mean adds a constant that these weights have no place for: keep it.")
    return places_of


def project_writers(model: AdaptedModel, places: Sequence[Place], ablation: ConceptAblation) -> None:
    """Replace W by (1 - strength * Q Q^T) W at every place, in float64, rounded once."""
    assert isinstance(ablation.strength, float)
    basis = orthonormal(ablation.directions.detach().cpu())
    for kind, layer in places:
        if kind == "resid_pre":
            _project_embeddings(model, basis, ablation.strength)
            continue
        module = _writer(model, kind, layer)
        weight = _out_first(module)
        weight.copy_(_projected(weight.T, basis, ablation.strength).T)
        if getattr(module, "bias", None) is not None:
            module.bias.data = _projected(module.bias.data, basis, ablation.strength)


def _same_directions(ablation: ConceptAblation, among: Sequence[ConceptAblation]) -> tuple[ConceptAblation, ...]:
    return tuple(
        other
        for other in among
        if other.strength == ablation.strength
        and other.directions.shape == ablation.directions.shape
        and torch.equal(other.directions, ablation.directions)
    )


def _everywhere(places: list[Place], model: AdaptedModel, ablations: Sequence[ConceptAblation]) -> list[Place]:
    layers = range(model.n_layers)
    needed = {("resid_pre", 0)} | {(kind, layer) for kind in ("resid_mid", "resid_post") for layer in layers}
    redundant = {("resid_pre", layer) for layer in layers} | {
        (kind, layer) for kind in ("attn_out", "mlp_out") for layer in layers
    }
    if not needed <= set(places) or set(places) - needed - redundant or ablations[0].strength != 1.0:
        raise NotSupported(
            "The residual stream passes each layer without a weight, so an ablation of it is exact in the weights only "
            "at full strength, with the same directions at resid_pre of layer 0 and at resid_mid and resid_post of "
            "every layer; or at attn_out or mlp_out alone."
        )
    return [("resid_pre", 0), *((kind, layer) for layer in layers for kind in ("attn_out", "mlp_out"))]


def _writer(model: AdaptedModel, kind: str, layer: int) -> Any:
    family = model.hub.family
    block = submodule(model.inner, f"{family.layers}.{layer}")
    if kind == "attn_out":
        normed, path = family.attn_out != family.output, family.output
    else:
        normed, path = family.mlp_out != family.mlp, family.mlp_post or ""
        if find_router(submodule(block, family.mlp)) is not None or not path:
            raise NotSupported(f"Layer {layer} is a mixture of experts, whose many output matrices are not folded yet.")
    if normed:
        raise NotSupported(f"What {kind} writes passes a norm first in {type(model.inner).__name__}: not foldable.")
    return submodule(block, path)


def _out_first(module: nn.Module) -> Tensor:
    """The weight as [out, in], a view."""
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def _project_embeddings(model: AdaptedModel, basis: Tensor, strength: float) -> None:
    """Token and learned position embeddings; an output matrix tied to them is untied first, it only reads."""
    hf = model.inner
    tokens, output = hf.get_input_embeddings(), hf.get_output_embeddings()
    if output is not None and output.weight is tokens.weight:
        output.weight = nn.Parameter(output.weight.detach().clone())
        hf.config.tie_word_embeddings = False
    for module in [tokens, getattr(hf.base_model, "wpe", None)]:
        if module is not None:
            module.weight.data = _projected(module.weight.data, basis, strength)


def _projected(rows: Float[Tensor, "*rows d_model"], basis: Tensor, strength: float) -> Float[Tensor, "*rows d_model"]:
    exact, q = rows.double(), basis.to(rows.device, torch.float64)
    return (exact - strength * ((exact @ q.T) @ q)).to(rows.dtype)
