"""What the active adapters of a ``PeftModel`` change: factors where they are the whole change, else whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from probes.weights.naming import Layout, key_of, place_of
from probes.weights.stored_adapter import Factors
from workbench.errors import UserError
from workbench.models import weight_changes
from workbench.models.adapter_layers import acting_adapters, adapter_layers
from workbench.models.quantized import Reader, weight_readers
from workbench.typing import Tensor


def loaded_adapter(
    model: Any, base_model: Any, before: Mapping[str, Reader], layout: Layout
) -> tuple[dict[str, Factors], dict[str, Reader]]:
    """Factors and readers of the weights that act with the adapters on, by key.

    Args:
        model: the ``PeftModel``; what its layers hold active now counts.
        base_model: the base it is compared with; None where only its weights are known.
        before: readers of the base's weights.
        layout: how the base's weights are laid out.
    """
    shared = base_model in (model, model.get_base_model())
    if shared and any(layer.merged_adapters for layer in adapter_layers(model)):
        raise UserError(
            "The adapter is merged into the base's weights, so both sides are the same: call unmerge_adapter(), or "
            "give the base as a folder."
        )
    known: dict[str, Factors] = {}
    after = _replaced_modules(model)
    whole = set(after)
    if not shared:
        after = {key_of(name): read for name, read in weight_readers(model).items()} | after
    for module in weight_changes.adapted_modules(model):
        key = key_of(module if key_of(module) in before else f"{module}.weight")
        if key in whole or key not in before:
            continue
        low_rank = weight_changes.factors(model, module) if shared else None
        if low_rank is not None:
            up, down = low_rank.B.detach().float(), low_rank.A.detach().float()
            known[key] = Factors(up * low_rank.scaling, down, low_rank.scaling)
        else:
            after[key] = partial(
                _effective, model, module, before[key] if shared else after.get(key, before[key]), layout
            )
    for module, change in weight_changes.bias_changes(model).items():
        key = key_of(f"{module}.bias")
        after[key] = partial(_moved, (before if shared else after).get(key), change)
    return known, after


def _effective(model: Any, module: str, read_base: Reader, layout: Layout) -> Tensor:
    """The tuned weight in float64, laid out as the base's: rounding must not eat a small change.

    ``read_base`` reads the weight under the adapter, which is the base's own unless the adapter rewrote it.
    """
    weight = read_base()
    delta = weight_changes.effective_delta(model, module).double().to(weight.device)
    return weight.double() + (delta.mT if layout.turned(place_of(module).module, weight.ndim) else delta)


def _moved(read_base: Reader | None, change: Tensor) -> Tensor:
    return change if read_base is None else read_base().float() + change


def _replaced_modules(model: Any) -> dict[str, Reader]:
    """Readers of whole modules trained in the place of the base's (``modules_to_save``, norms) that act now."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.utils.other import ModulesToSaveWrapper

    copies = {ModulesToSaveWrapper: "modules_to_save", LNTuningLayer: "ln_tuning_layers"}
    readers: dict[str, Reader] = {}
    for name, module in model.get_base_model().named_modules():
        if (where := copies.get(type(module))) is not None:
            for adapter in acting_adapters(module)[:1]:
                for inner, parameter in getattr(module, where)[adapter].named_parameters():
                    readers[key_of(f"{name}.{inner}")] = partial(_same, parameter.detach())
    return readers


def _same(tensor: Tensor) -> Tensor:
    return tensor
