"""The modules and weights of a base under the layers that PEFT puts on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from workbench.typing import Tensor

_ENTRIES = 32
"""Entries of each weight that are looked at for whether it was written to."""


def bare_module(module: nn.Module) -> nn.Module | None:
    """The base's own module under adapter layers; None when ``module`` is no adapter layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner = module
    while isinstance(inner, BaseTunerLayer | AuxiliaryTrainingWrapper):
        inner = inner.base_layer if isinstance(inner, BaseTunerLayer) else inner.original_module
    return None if inner is module else inner


def adapter_layers(model: nn.Module) -> Iterator[Any]:
    """Every layer PEFT put into ``model``: around its modules, or beside them as trained copies."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield module


def acting_adapters(layer: Any) -> list[str]:
    """The active adapters that one adapter layer has, in their order: what its forward pass adds while it is on."""
    own = layer._get_available_adapters()
    return [name for name in layer.active_adapters if name in own]


def acting_state(model: nn.Module, *, base: bool = False) -> tuple[Any, ...]:
    """What PEFT's own switches have set: active and merged adapters and scalings, layer by layer.

    Args:
        base: Only what reaches the weights under the adapters, which is merging.
    """
    layers = list(adapter_layers(model))
    merged = tuple(tuple(layer.merged_adapters) for layer in layers)
    if base:
        return merged if any(merged) else ()
    scalings = (getattr(layer, "scaling", None) for layer in layers)
    scaled = tuple(tuple(scaling.items()) if isinstance(scaling, dict) else () for scaling in scalings)
    return merged, tuple(tuple(layer.active_adapters) for layer in layers), scaled


def written_state(model: Any, *, base: bool = False) -> tuple[Any, ...]:
    """Something else once a weight was written to, or replaced, since; a few entries of each are read for it.

    torch counts what is written to a tensor, and not what is written to its ``.data`` (PEFT's hotswap): that the
    entries tell.

    Args:
        base: Only the weights under the adapters.
    """
    weights = [tensor for _, tensor in base_tensors(model)] if base else list(model.parameters())
    weights = [weight for weight in weights if weight.device.type != "meta" and weight.numel()]
    entries: dict[torch.device, list[Tensor]] = {}
    for weight in weights:
        entries.setdefault(weight.device, []).append(_some_entries(weight.detach()))
    seen = tuple(hash(torch.cat(some).cpu().numpy().tobytes()) for some in entries.values())
    return seen, tuple((_number(weight.data_ptr), _number(partial(getattr, weight, "_version"))) for weight in weights)


def _some_entries(weight: Tensor) -> Tensor:
    try:
        flat = weight.reshape(-1) if weight.is_contiguous() else weight[..., 0].reshape(-1)
        return flat[:: max(1, len(flat) // _ENTRIES)][:_ENTRIES].float()
    except (RuntimeError, NotImplementedError, TypeError):  # a quantized tensor that cannot be taken apart
        return torch.zeros(0, device=weight.device)


def _number(read: Callable[[], int]) -> int:
    try:
        return read()
    except RuntimeError:  # without storage of its own, or made in inference mode, where no writing is counted
        return 0


def own_scaling(layer: Any, adapter: str) -> float | None:
    """The scaling that an adapter layer had when it was made; None of one that has none."""
    alphas = getattr(layer, "lora_alpha", None) or getattr(layer, "alpha", None)
    settings = (alphas, getattr(layer, "r", None))
    alpha, rank = (by_name.get(adapter) if isinstance(by_name, dict) else None for by_name in settings)
    if alpha is None or not rank:
        return None
    if hasattr(layer, "ranknum"):  # AdaLoRA
        return float(alpha if alpha > 0 else rank)
    stabilised = getattr(layer, "use_rslora", {}).get(adapter, False)
    return float(alpha / math.sqrt(rank) if stabilised else alpha / rank)


def base_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers of the base under any adapters, by the base's names; tied ones once."""
    root: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    tied = set(getattr(root, "all_tied_weights_keys", None) or ())
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in sorted(_own_tensors(root, ""), key=lambda item: (item[0] in tied, item[0])):
        key = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.device.type != "meta" and tensor.numel():
            if key in seen:
                continue
            seen.add(key)
        yield name, tensor


def _own_tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    inner = bare_module(module)
    module = module if inner is None else inner
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter.detach()
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield prefix + name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield from _own_tensors(child, f"{prefix}{name}.")
