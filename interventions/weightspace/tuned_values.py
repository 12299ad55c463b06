"""The tuned model's values under the base's names, whether they are stored or made by an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from interventions.weightspace.swapping import base_parameters, find_parameter
from workbench.errors import UserError
from workbench.typing import Tensor


def changed_names(pair: Any) -> list[str]:
    """Names of the base's parameters whose values differ in the tuned model, tied ones once."""
    if pair.adapter is None:
        before, after = base_parameters(pair.base.hf), base_parameters(pair.tuned.hf)
        distinct = {id(parameter): name for name, parameter in reversed(before.items())}
        names = [name for name in before if distinct[id(before[name])] == name and name in after]
        return [name for name in names if not torch.equal(before[name].cpu(), after[name].cpu())]
    return sorted(
        {name for module in _adapter_modules(pair.adapter) for name in _parameters_of(pair, module)}
        | set(_saved_parameters(pair.adapter))
    )


def tuned_values(pair: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Values of those parameters in the tuned model, in the base's dtype.

    Of a full model they are its own tensors, not copied; an adapter's are base + the change it makes, rounded once.
    """
    before = base_parameters(pair.base.hf)
    if pair.adapter is None:
        after = base_parameters(pair.tuned.hf)
        return {name: find_parameter(after, name).data for name in names}
    saved, modules = _saved_parameters(pair.adapter), _adapter_modules(pair.adapter)
    return {name: _adapted_value(pair, name, find_parameter(before, name), saved, modules) for name in names}


def _adapted_value(pair: Any, name: str, base: Tensor, saved: dict[str, Tensor], modules: list[str]) -> Tensor:
    from workbench.models.weight_changes import effective_delta

    if name in saved:
        return saved[name]
    module = next((module for module in modules if name in (module, f"{module}.weight")), None)
    if module is None:
        return base.data
    change = effective_delta(pair.adapter, module, base=None if pair.one_copy else pair.base.hf)
    change = as_stored(pair.base.hf, module, change, base)
    return (base.data.double() + change.to(base.device).double()).to(base.dtype)


def as_stored(hf: Any, module: str, change: Tensor, weight: Tensor) -> Tensor:
    """A change [out, in] laid out as the weight it belongs to: GPT-2 keeps [in, out], square matrices too."""
    from transformers.pytorch_utils import Conv1D

    from workbench.models.adapter_layers import bare_module

    root = hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf
    try:
        owner = root.get_submodule(module)
    except AttributeError:
        owner = None  # a parameter adapted by itself
    turned = isinstance((bare_module(owner) or owner) if owner is not None else None, Conv1D)
    return change.transpose(-1, -2) if turned or change.shape != weight.shape else change


def _adapter_modules(adapter: Any) -> list[str]:
    from workbench.models.weight_changes import adapted_modules

    return adapted_modules(adapter)


def _parameters_of(pair: Any, module: str) -> list[str]:
    known = base_parameters(pair.base.hf)
    names = [name for name in (module, f"{module}.weight") if name in known]
    if not names:
        raise UserError(f"The adapter changes {module}, which has no weight of its own in the base.")
    return names


def _saved_parameters(adapter: Any) -> dict[str, Tensor]:
    """Parameters of the modules that the adapter holds whole (``modules_to_save``), by the base's names."""
    from peft.utils.other import ModulesToSaveWrapper

    parameters = {}
    for path, module in adapter.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for active in module.active_adapters:
                for name, parameter in module.modules_to_save[active].named_parameters():
                    parameters[f"{path}.{name}"] = parameter.data
    return parameters
