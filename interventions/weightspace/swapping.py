"""Other weights for the time of a context. The original tensors are kept and come back, never recomputed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from interventions.strength import Strength, as_strength
from workbench.engine.layered import laid
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import bare_module
from workbench.typing import Tensor


def base_parameters(hf: Any) -> dict[str, nn.Parameter]:
    """The parameters of the base model under any adapters, by the base's own names.

    A tied parameter is listed under each of its names.
    """
    root = hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf
    return dict(_parameters(root, ""))


def _parameters(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    module = bare_module(module) or module
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter
    for name, child in module._modules.items():
        if child is not None:
            yield from _parameters(child, f"{prefix}{name}.")


def find_parameter(parameters: Mapping[str, nn.Parameter], name: str) -> nn.Parameter:
    """The parameter of that name, fit to be changed.

    Raises :class:`UserError` for an unknown name, :class:`NotSupported` for quantized or offloaded weights.
    """
    if name not in parameters:
        raise unknown_name("parameter of this model", name, parameters)
    parameter = parameters[name]
    if parameter.device.type == "meta":
        raise NotSupported(
            f"{name} is offloaded, so its values are not in memory outside its own forward pass: load the model "
            "without offloading to change weights."
        )
    if not parameter.is_floating_point():
        raise NotSupported(f"{name} is quantized ({parameter.dtype}): load the model unquantized to change weights.")
    return parameter


def one_strength(number: Strength) -> float:
    """The strength of an intervention on weights. Raises :class:`NotSupported` for one per row of a batch."""
    strength = as_strength(number)
    if not isinstance(strength, float):
        raise NotSupported("Rows of a batch share the weights, so there is one strength for all of them.")
    return strength


@contextmanager
def swapped(new: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Let each parameter hold another tensor of its shape inside the context.

    The parameter objects stay, so optimisers, ties and hooks keep working; after, each holds the same tensor
    object as before, also when an exception ends the context, and in whatever order several contexts end. A model that
    was moved inside (``.to(dtype)``, ``.to(device)``) stays moved.
    """
    with ExitStack() as stack:
        for parameter, value in new.items():
            stack.enter_context(laid(("weights", id(parameter)), value, partial(_hold, parameter)))
        yield


def _hold(parameter: nn.Parameter, value: Tensor) -> Tensor:
    before = parameter.data
    parameter.data = value.to(before)
    return before


def check_same_shape(name: str, value: Tensor, parameter: Tensor) -> None:
    """Raise :class:`UserError` when ``value`` cannot stand in for ``parameter`` or holds NaN or infinity."""
    if value.shape != parameter.shape:
        raise UserError(
            f"{name} is {list(value.shape)} in the intervention and {list(parameter.shape)} in the model: it was "
            "made for another model."
        )
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"{name} holds values that are not finite (NaN or infinity): make the graft again.")


def layer_of(name: str, model: AdaptedModel) -> int | None:
    """The layer that a parameter or module belongs to; None outside the layers."""
    stem = f"{model.hub.family.layers}."
    return int(name.removeprefix(stem).split(".")[0]) if name.startswith(stem) else None
