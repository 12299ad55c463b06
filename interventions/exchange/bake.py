"""Recipes baked into weights: a Hugging Face model that needs no Tunescope and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interventions.base import Intervention
from interventions.concept_ablation import ConceptAblation
from interventions.exchange.biases import (
    add_to_output_bias,
    output_offsets,
    output_weight,
    with_output_bias,
    z_maps,
)
from interventions.exchange.projecting import project_writers, written_by
from interventions.exchange.widening import narrow, widen
from interventions.heads import HeadOffset, HeadScale
from interventions.offset import Offset
from interventions.recipe import Recipe, as_adapted
from workbench.engine.positions import where
from workbench.errors import NotSupported
from workbench.files import check_new_folder, whole_folder
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.typing import Tensor

_OFFSETS = (HeadOffset, Offset)
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


def baked(model: Any, recipe: Recipe) -> Any:
    """A copy of ``model`` (an adapter merged) whose plain forward pass is that of ``model`` with ``recipe`` applied.

    ================================================  =====================================================
    ``HeadOffset``; ``Offset`` at attn_out, resid_mid   the bias of the attention output projection, W_O v
    ``HeadScale``                                       the head's columns of W_O
    ``ConceptAblation`` at attn_out or mlp_out          the rows of W_O or W_down
    ``ConceptAblation`` at resid_pre of layer 0         the embeddings
    the same directions at resid_pre of layer 0 and     the embeddings and every W_O and W_down
    at resid_mid and resid_post of every layer
    ================================================  =====================================================

    Everything else, and anything that acts on some positions or rows only, is :class:`NotSupported`: weights act on
    every token. The copy is compared with the recipe on a few tokens before it is returned, weights of half precision
    in float32 (where nothing hides in their rounding) and rounded once after.
    """
    adapted = as_adapted(model)
    recipe.check(adapted)
    for place, intervention in enumerate(recipe):
        check_everywhere(intervention, f"{intervention.kind} (number {place} of the recipe)")
    with adapted.active():
        hf = plain_copy(adapted).eval()
    ablations = [intervention for intervention in recipe if isinstance(intervention, ConceptAblation)]
    if ablations and len(ablations) < len(recipe):
        raise NotSupported(
            "Ablations and changes of heads in one recipe act on each other in an order that weights do not keep: "
            "bake one, then the other into the result."
        )
    dtypes = widen(hf)
    wanted = _logits(AdaptedModel(hf, None) if dtypes else adapted, recipe)
    if any(isinstance(intervention, _OFFSETS) for intervention in recipe):
        hf = with_output_bias(hf, AdaptedModel(hf, None).hub.family)
    target = AdaptedModel(hf, None)
    with torch.no_grad():
        _fold_heads(target, recipe)
        for kinds, ablation in written_by(ablations, target):
            project_writers(target, kinds, ablation)
    _check_same(wanted, _logits(target, Recipe([])))
    narrow(hf, dtypes, adapted.dtype)
    return hf


def bake(model: Any, recipe: Recipe, folder: str | Path) -> Path:
    """Save :func:`baked` as a Hugging Face folder, with the tokenizer if there is one; whole or not at all."""
    adapted, target = as_adapted(model), Path(folder)
    check_new_folder(target)
    hf = baked(adapted, recipe)
    with whole_folder(target) as partial:
        partial.mkdir(parents=True)
        hf.save_pretrained(str(partial))
        if adapted.tokenizer is not None:
            adapted.tokenizer.save_pretrained(str(partial))
    return target


def check_everywhere(intervention: Intervention, what: str, *, runs: bool = False) -> None:
    """Refuse what weights cannot do, as they act on every token; ``what`` names it in the sentence.

    ``runs``: code that runs can hold gates and positions, and looks at them itself.
    """
    if not isinstance(intervention, HeadOffset | HeadScale | Offset | ConceptAblation):
        raise NotSupported(f"{what} has no exact counterpart in the weights: keep it as a recipe.")
    if intervention.when is not None and not runs:
        raise NotSupported(f"{what} acts behind a gate, which weights cannot hold: keep it as a recipe.")
    if where(intervention.positions) != where("all") and not runs:
        raise NotSupported(f"{what} acts on some positions only, and weights act on every token: use positions='all'.")
    if not isinstance(intervention.strength, float):
        raise NotSupported(f"{what} has a strength per row, and weights have one for all: bake one strength.")


def _fold_heads(target: AdaptedModel, recipe: Recipe) -> None:
    """Offsets into the bias first: they pass W_O as it is, and only then are its columns scaled."""
    for layer, vector in output_offsets(recipe, target).items():
        add_to_output_bias(target, layer, vector)
    for layer, (scale, _) in z_maps(recipe, target).items():
        weight = output_weight(target, layer)
        weight.copy_((weight.double() * scale.flatten().to(weight.device)).to(weight.dtype))


def _logits(model: AdaptedModel, recipe: Recipe) -> Tensor:
    """Of a few tokens, under the recipe."""
    ids = torch.arange(8).reshape(1, 8) * 7 % model.vocab_size
    with recipe.applied(model):
        logits = model.forward(ids)
    assert logits is not None
    return logits


def _check_same(wanted: Tensor, made: Tensor) -> None:
    """Raise when the baked model does not compute what the recipe does."""
    gap = float((made - wanted).abs().max() / wanted.std())
    if not gap <= _ROUNDING[wanted.dtype]:
        raise NotSupported(
            f"The weights would not compute what the recipe does (logits differ by {gap:.2g} of their spread): this "
            "architecture uses the changed weights in another way. Keep the recipe."
        )
