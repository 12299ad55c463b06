"""A recipe for a tuned model that is itself an adapter: a second LoRA, which PEFT runs beside the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interventions.exchange.biases import output_module, output_offsets, output_weight, z_maps
from interventions.offset import Offset
from interventions.recipe import Recipe
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import adapter_layers
from workbench.models.weight_changes import adapted_modules, effective_delta
from workbench.typing import Float, Tensor

WEIGHTS = "adapter_model.safetensors"
_BESIDE = "LORA"
"""The type of adapter that runs beside others of its type."""


class SecondLora:
    """What is saved: PEFT's config and the tensors by their names in its files."""

    def __init__(self, config: Any, tensors: dict[str, Tensor]) -> None:
        self.config, self.tensors = config, tensors

    def save_pretrained(self, folder: str) -> None:
        """Write it as PEFT does."""
        place = Path(folder)
        place.mkdir(parents=True)
        self.config.save_pretrained(str(place))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})


def carries_adapter(model: AdaptedModel) -> bool:
    """Whether the model's modules hold an adapter already."""
    return any(True for _ in adapter_layers(model.inner))


@contextmanager
def second_lora(model: AdaptedModel, recipe: Recipe) -> Iterator[SecondLora]:
    """The recipe's head scales and offsets as a LoRA on the attention output projections, exact beside the first.

    A scale of a head's z is a change of W_O's columns, of rank d_head: A picks the columns, B holds what is added to
    them, of W_O with the first adapter's own change in it. Offsets are the bias of B.

    Raises:
        NotSupported: The first adapter is no LoRA, beside which PEFT runs no other.
    """
    import peft

    _check_lora(model)
    maps, offsets = z_maps(recipe, model), _offsets(recipe, model)
    scaled = {layer: scale.flatten() for layer, (scale, _) in maps.items() if bool((scale != 1).any())}
    family = model.hub.family
    paths = {layer: f"{family.layers}.{layer}.{family.output}" for layer in sorted({*scaled, *offsets})}
    rank = max((int((scale != 1).sum()) for scale in scaled.values()), default=1)
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(paths.values()), lora_bias=bool(offsets), task_type="CAUSAL_LM",
        fan_in_fan_out=_transposed(model),
    )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for layer, path in paths.items():
        weight = _acting_weight(model, layer, path)
        down, up = _factors(weight, scaled.get(layer, torch.ones(weight.shape[1])), rank)
        name = f"base_model.model.{path}"
        tensors |= {f"{name}.lora_A.weight": down.to(model.dtype), f"{name}.lora_B.weight": up.to(model.dtype)}
        if offsets:
            bias = offsets.get(layer, torch.zeros(weight.shape[0]))
            tensors[f"{name}.lora_B.bias"] = bias.to(device="cpu", dtype=model.dtype)
    yield SecondLora(config, tensors)


def _check_lora(model: AdaptedModel) -> None:
    configs = getattr(model.hf, "peft_config", {})
    others = sorted({config.peft_type.value for config in configs.values()} - {_BESIDE})
    if others:
        raise NotSupported(
            f"The model's own adapter is {others[0]}, and PEFT runs only LoRAs beside each other: export the model "
            "with the recipe in its weights (--to model)."
        )


def _acting_weight(model: AdaptedModel, layer: int, path: str) -> Float[Tensor, "d_model z_width"]:
    """W_O as this side of the pair computes with it, float64 on the CPU: with the adapter's change on the tuned one."""
    weight = output_weight(model, layer).double().cpu()
    if model.role != "base" and path in adapted_modules(model.hf):
        weight = weight + effective_delta(model.hf, path).double().cpu()
    return weight


def _offsets(recipe: Recipe, model: AdaptedModel) -> dict[int, Float[Tensor, " d_model"]]:
    """Layer -> what the recipe adds to the projection's output, through the weight that acts."""
    offsets = output_offsets([intervention for intervention in recipe if isinstance(intervention, Offset)], model)
    family = model.hub.family
    for layer, (_, offset) in z_maps(recipe, model).items():
        if bool(offset.any()):
            written = _acting_weight(model, layer, f"{family.layers}.{layer}.{family.output}") @ offset.flatten()
            offsets[layer] = offsets[layer].cpu() + written if layer in offsets else written
    return offsets


def _factors(
    weight: Float[Tensor, "d_model z_width"], scale: Float[Tensor, " z_width"], rank: int
) -> tuple[Float[Tensor, "rank z_width"], Float[Tensor, "d_model rank"]]:
    """A that picks the scaled columns and B that holds their change; the rest of both is 0."""
    columns = (scale != 1).nonzero().flatten()
    down, up = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)
    down[torch.arange(len(columns)), columns] = 1.0
    up[:, : len(columns)] = weight[:, columns] * (scale[columns].to(weight) - 1)
    return down, up


def _transposed(model: AdaptedModel) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(output_module(model, 0), Conv1D)
