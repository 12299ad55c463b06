"""Constant offsets of attention as the bias of its output projection: b = W_O v, never v itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from interventions.base import Intervention
from interventions.checks import by_layer, resolved
from interventions.heads import HeadOffset, HeadScale
from interventions.offset import Offset
from workbench.engine.families import Family, submodule
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor


def output_projection(model: AdaptedModel, layer: int) -> Any:
    """The attention output projection of a layer."""
    family = model.hub.family
    return submodule(model.inner, f"{family.layers}.{layer}.{family.output}")


def output_module(model: AdaptedModel, layer: int) -> Any:
    """The projection itself, without an adapter around it."""
    module = output_projection(model, layer)
    return getattr(module, "base_layer", module)


def output_weight(model: AdaptedModel, layer: int) -> Float[Tensor, "d_model z_width"]:
    """W_O, [out, in] also where the module keeps it transposed, without the change of an adapter; a view."""
    from transformers.pytorch_utils import Conv1D

    module = output_module(model, layer)
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def z_maps(
    recipe: Iterable[Intervention], model: AdaptedModel
) -> dict[int, tuple[Float[Tensor, "head d_head"], Float[Tensor, "head d_head"]]]:
    """Layer -> (a, c), float64: the recipe's head offsets and scales together do z <- a z + c there."""
    maps: dict[int, tuple[Tensor, Tensor]] = {}
    for intervention in recipe:
        if not isinstance(intervention, HeadOffset | HeadScale):
            continue
        assert isinstance(intervention.strength, float)
        values = intervention.vectors if isinstance(intervention, HeadOffset) else intervention.scales
        for layer, heads in by_layer(list(values)).items():
            shape = (model.n_heads, model.d_head)
            scale, offset = maps.get(layer) or (
                torch.ones(shape, dtype=torch.float64),
                torch.zeros(shape, dtype=torch.float64),
            )
            for head in heads:
                value = torch.as_tensor(values[f"L{layer}H{head}"]).detach().double().cpu()
                if isinstance(intervention, HeadOffset):
                    offset[head] += intervention.strength * value
                else:
                    factor = 1 + intervention.strength * (value - 1)
                    scale[head], offset[head] = scale[head] * factor, offset[head] * factor
            maps[layer] = scale, offset
    return maps


def output_offsets(recipe: Iterable[Intervention], model: AdaptedModel) -> dict[int, Float[Tensor, " d_model"]]:
    """Layer -> what the recipe adds to the output of the attention output projection, float64."""
    offsets: dict[int, Tensor] = {}
    for layer, (_, offset) in z_maps(recipe, model).items():
        if bool(offset.any()):
            weight = output_weight(model, layer).double()
            offsets[layer] = weight @ offset.flatten().to(weight.device)
    for intervention in recipe:
        if isinstance(intervention, Offset):
            assert isinstance(intervention.strength, float)
            layer = resolved(model, intervention.layer)
            vector = intervention.strength * _written(intervention, model)
            offsets[layer] = offsets[layer] + vector.to(offsets[layer]) if layer in offsets else vector
    return offsets


def add_to_output_bias(model: AdaptedModel, layer: int, vector: Float[Tensor, " d_model"]) -> None:
    """Add to the projection's bias, rounded once."""
    bias = output_projection(model, layer).bias
    bias.data = (bias.data.double() + vector.to(bias.device)).to(bias.dtype)


def with_output_bias(hf: Any, family: Family) -> Any:
    """``hf``, or its copy with ``attention_bias`` on and every new bias 0, so that the projection has a bias.

    Raises :class:`NotSupported` for a family whose projection cannot have one.
    """
    if _has_bias(hf, family):
        return hf
    config = type(hf.config).from_dict({**hf.config.to_dict(), "attention_bias": True})
    with torch.device("meta"):
        wider = type(hf)(config)
    if not _has_bias(wider, family):
        raise NotSupported(
            f"{type(hf).__name__} has no bias on its attention output projection and its config cannot give it one, so "
            "the offset has no place in its weights: export an adapter instead (interventions.to_adapter)."
        )
    wider = type(hf)(config).to(dtype=hf.dtype, device=hf.device)
    missing, unexpected = wider.load_state_dict(hf.state_dict(), strict=False)
    assert not unexpected and all(name.endswith(".bias") for name in missing)
    with torch.no_grad():
        for name in missing:
            wider.get_parameter(name).zero_()
    for name, buffer in hf.named_buffers():  # what is not saved: rotary frequencies, rounded where a model was cast
        wider.get_buffer(name).data = buffer.data
    wider.generation_config = hf.generation_config
    return wider.eval()


def _has_bias(hf: Any, family: Family) -> bool:
    return getattr(submodule(hf, f"{family.layers}.0.{family.output}"), "bias", None) is not None


def _written(offset: Offset, model: AdaptedModel) -> Float[Tensor, " d_model"]:
    family = model.hub.family
    if offset.site not in ("attn_out", "resid_mid") or family.attn_out != family.output:
        why = "passes a norm first" if offset.site in ("attn_out", "resid_mid") else "has no bias that adds to it"
        raise NotSupported(f"An Offset at {offset.site} has no exact place in the weights: that site {why}.")
    if offset.units == "fraction" or offset.match_norm:
        raise NotSupported("An Offset that depends on the token's norm is no constant: it cannot become a bias.")
    vector = offset.vector.detach().double().cpu()
    if offset.units == "norm":
        assert offset.site_norm is not None
        vector = vector / vector.norm() * offset.site_norm
    return vector
