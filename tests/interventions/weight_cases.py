"""Weights set by hand: what grafts, scaled layers and scaled adapters must equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import peft
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.adapted import AdaptedModel

LORA = {
    "gpt2": ["c_proj"],
    "neox": ["dense", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "o_proj"],
    "dsv3": ["q_b_proj", "o_proj"],
}
"""Two kinds of module with an adapter, where they are not q_proj and o_proj."""
RANK = 4


@cache
def adapter_model_of(family: str) -> AdaptedModel:
    """A random model with a LoRA that does something, on."""
    targets = LORA.get(family, ["q_proj", "o_proj"])
    config = peft.LoraConfig(
        r=RANK, lora_alpha=6, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = peft.get_peft_model(tiny_model(family), config).eval()
    return AdaptedModel(tuned, tokenizer(), name=family)


@cache
def tuned_values(family: str) -> Mapping[str, torch.Tensor]:
    """Name -> tuned tensor of every parameter."""
    return {name: value.detach().clone() for name, value in tuned_copy(tiny_model(family)).named_parameters()}


@cache
def half(family: str) -> Mapping[str, torch.Tensor]:
    """Name -> a random half of the entries of every parameter of the middle layer."""
    generator = torch.Generator().manual_seed(6)
    values = tuned_values(family)
    return {name: torch.rand(value.shape, generator=generator) < 0.5 for name, value in values.items() if ".1." in name}


@contextmanager
def weights_set(m: AdaptedModel, new: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The parameters' numbers overwritten in place, and written back."""
    parameters = dict(m.inner.named_parameters())
    before = {name: parameters[name].detach().clone() for name in new}
    with torch.no_grad():
        for name, value in new.items():
            parameters[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


def grafted(m: AdaptedModel) -> Any:
    tuned, base = tuned_values(m.name), dict(m.inner.named_parameters())
    return weights_set(m, {name: torch.where(mask, tuned[name], base[name]) for name, mask in half(m.name).items()})


def layers_scaled(m: AdaptedModel, a: float, b: float) -> Any:
    base, new = dict(m.inner.named_parameters()), {}
    for name, value in tuned_values(m.name).items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        factor = a + b * numbers[0] / (m.n_layers - 1) if name.startswith(m.hub.family.layers) else a
        new[name] = base[name].detach() + factor * (value - base[name].detach())
    return weights_set(m, new)


def adapter_scaled(m: AdaptedModel, factor_of: Any, ranks: torch.Tensor) -> Any:
    """Each change multiplied out into the weight below it, and every B set to zero. ``factor_of(path, layer)``."""
    parameters, new = dict(m.inner.named_parameters()), {}
    for name, up in parameters.items():
        if ".lora_B." not in name:
            continue
        path = name.split(".lora_B.")[0]
        layer = next(int(part) for part in path.split(".") if part.isdigit())
        down, weight = parameters[name.replace("lora_B", "lora_A")], parameters[f"{path}.base_layer.weight"]
        change = 6 / RANK * factor_of(path, layer) * (up * ranks) @ down
        turned = change.T if m.name == "gpt2" else change  # Conv1D keeps [in, out]
        new[f"{path}.base_layer.weight"] = (weight + turned).detach()
        new[name] = torch.zeros_like(up)
    return weights_set(m, new)
