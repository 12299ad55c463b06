"""Recipes as PEFT adapters, where that is exact: they load without Tunescope, on families without biases too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from interventions.base import Intervention
from interventions.exchange.biases import output_module, output_offsets, output_projection, z_maps
from interventions.exchange.second_adapter import carries_adapter, second_lora
from interventions.heads import HeadOffset, HeadScale
from interventions.offset import Offset
from interventions.recipe import Recipe, as_adapted
from interventions.weightspace.adapter_scale import AdapterScale
from workbench.engine.positions import where
from workbench.errors import NotSupported
from workbench.files import check_new_folder, whole_folder
from workbench.models.adapted import AdaptedModel


def to_adapter(model: Any, recipe: Recipe, folder: str | Path) -> Path:
    """Save a recipe as a PEFT adapter folder.

    ``HeadOffset`` and ``Offset`` at attn_out become a LoRA whose matrices are 0 and whose bias is the offset;
    ``HeadScale`` becomes an (IA)^3 on the input of the attention output projection; ``AdapterScale`` becomes the same
    LoRA with B scaled. One kind per file; everything else is :class:`NotSupported`, because no adapter is that.

    Of a model that carries a LoRA itself, the first two become a second LoRA, exact beside the first:
    ``PeftModel.from_pretrained(base, first)``, then ``load_adapter(folder, "recipe")`` and
    ``base_model.set_adapter(["default", "recipe"])``; or alone, on the model with the first one merged.
    """
    adapted, target = as_adapted(model), Path(folder)
    recipe.check(adapted)
    check_new_folder(target)
    kind = adapter_kind(recipe)
    builders = {"bias": _bias_adapter, "scale": _input_scales, "lora": _scaled_lora}
    builder = second_lora if kind != "lora" and carries_adapter(adapted) else builders[kind]
    with builder(adapted, recipe) as made, whole_folder(target) as partial, warnings.catch_warnings():
        # PEFT takes the bias of lora_B, which is one vector, for a torn matrix
        warnings.filterwarnings("ignore", message=".*lora_B.bias.*")
        made.save_pretrained(str(partial))
    return target


def adapter_kind(recipe: Recipe) -> str:
    """The type of adapter that a recipe becomes: ``bias``, ``scale`` or ``lora``.

    Raises:
        NotSupported: No adapter, or more than one, is that.
    """
    kinds = {_adapter_kind(intervention, number) for number, intervention in enumerate(recipe)}
    if len(kinds) != 1:
        raise NotSupported(f"One adapter has one type, and this recipe needs {len(kinds) or 'none'}: export its parts.")
    return kinds.pop()


def _adapter_kind(intervention: Intervention, number: int) -> str:
    what = f"{intervention.kind} (number {number} of the recipe)"
    if isinstance(intervention, AdapterScale):
        return "lora"
    if not isinstance(intervention, HeadOffset | HeadScale | Offset):
        raise NotSupported(f"{what} is no PEFT adapter: an adapter changes weights, on every token alike.")
    if intervention.when is not None:
        raise NotSupported(f"{what} acts behind a gate, which an adapter cannot hold: keep it as a recipe.")
    if where(intervention.positions) != where("all") or not isinstance(intervention.strength, float):
        raise NotSupported(
            f"{what} acts on some positions or rows, and an adapter on all of them: use positions='all'."
        )
    return "scale" if isinstance(intervention, HeadScale) else "bias"


@contextmanager
def _bias_adapter(model: AdaptedModel, recipe: Recipe) -> Iterator[Any]:
    import peft

    totals = output_offsets(recipe, model)
    config = peft.LoraConfig(
        r=1, lora_alpha=1, target_modules=_projections(model, totals), lora_bias=True, task_type="CAUSAL_LM",
        fan_in_fan_out=_transposed(model),
    )  # fmt: skip
    with _temporary(model, config) as made, torch.no_grad():
        for layer, vector in totals.items():
            up = output_projection(model, layer).lora_B["default"]
            up.weight.zero_()
            output_projection(model, layer).lora_A["default"].weight.zero_()
            up.bias.copy_(vector)
        yield made


@contextmanager
def _input_scales(model: AdaptedModel, recipe: Recipe) -> Iterator[Any]:
    import peft

    totals = {layer: scale for layer, (scale, _) in z_maps(recipe, model).items()}
    names = _projections(model, totals)
    config = peft.IA3Config(
        target_modules=names, feedforward_modules=names, task_type="CAUSAL_LM", fan_in_fan_out=_transposed(model)
    )
    with _temporary(model, config) as made, torch.no_grad():
        for layer, factor in totals.items():
            learned = output_projection(model, layer).ia3_l["default"]
            learned.copy_(factor.reshape(learned.shape))
        yield made


@contextmanager
def _scaled_lora(model: AdaptedModel, recipe: Recipe) -> Iterator[Any]:
    if not hasattr(model.hf, "save_pretrained") or not hasattr(model.hf, "peft_config"):
        raise NotSupported("The adapter was loaded into the model itself; load the pair as base and adapter to export.")
    with ExitStack() as stack:
        for intervention in recipe:
            assert isinstance(intervention, AdapterScale)
            stack.enter_context(intervention.in_weights(model))
        yield model.hf


@contextmanager
def _temporary(model: AdaptedModel, config: Any) -> Iterator[Any]:
    """An adapter of ``config`` on the model for the time of the context; the bare modules come back."""
    import peft

    from workbench.models.adapters import detach_adapters

    flags = {parameter: parameter.requires_grad for parameter in model.inner.parameters()}
    try:
        with warnings.catch_warnings():
            # PEFT warns that such an adapter cannot be merged; that is why it is exported
            warnings.filterwarnings("ignore", message=".*lora_bias=True.*")
            made = peft.get_peft_model(model.inner, config)
        yield made
    finally:
        detach_adapters(model.inner)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _projections(model: AdaptedModel, layers: Any) -> list[str]:
    family = model.hub.family
    return [f"{family.layers}.{layer}.{family.output}" for layer in sorted(layers)]


def _transposed(model: AdaptedModel) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(output_module(model, 0), Conv1D)
