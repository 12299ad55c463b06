"""The change of weights an adapter makes, read exactly, whatever its type.

An adapter's own ``get_delta_weight`` is not always what it does to the output (DoRA, OFT, HRA, HiRA and
PiSSA differ). A linear module f is known from its outputs: f(X) - f(0) with X = identity is its weight,
transposed. That is read here on a float64 copy of one module at a time; the live model is left alone.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from workbench.errors import NotSupported, unknown_name
from workbench.models.adapter_fit import widths
from workbench.models.adapter_layers import acting_adapters, adapter_layers, bare_module
from workbench.typing import Float, Tensor

_INPUT_DEPENDENT = ("XLORA", "POLY")
_NONLINEAR_ABOVE = 1e-3  # relative; some types compute in float32 inside
_HOOK_DICTS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_REPLACED = ("forward", "_old_forward", "_hf_hook")  # what accelerate and nnsight hang on an instance


class Factors(NamedTuple):
    """A plain LoRA of one module: its change of weights is ``scaling * B @ A``."""

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "out rank"]
    scaling: float


def adapted_modules(model: Any, adapter: str | None = None) -> list[str]:
    """Names of the modules ``adapter`` (default: any active one) changes, as in the bare base model.

    A parameter adapted by itself (``target_parameters``: experts, a router) is named ``module.parameter``.
    """
    return sorted(_adapted(model, _known(model, adapter)))


@torch.no_grad()
def effective_delta(
    model: Any, module_name: str, adapter: str | None = None, *, base: Any = None
) -> Float[Tensor, "*expert out in"]:
    """The change of the weight of ``module_name`` by ``adapter`` (default: all active ones), float32, [out, in].

    Fused experts give [expert, out, in]; an embedding [token, width]. ``base`` is the true base model, needed
    where the adapter rewrites the base's weights (see ``rewrites_base``); else the change is from adapter
    off to on. Raises NotSupported for a change that depends on the input or of what is no linear map.
    """
    adapter = _known(model, adapter)
    module, parameter = _find(model, module_name, adapter)
    names = [adapter] if adapter is not None else acting_adapters(module)
    for name in names:
        if (kind := model.peft_config[name].peft_type.value) in _INPUT_DEPENDENT:
            raise NotSupported(f"{kind} mixes its parts anew for each input: no one change of weights.")
    if parameter is not None and base is None:
        parts = torch.stack([_parameter_delta(parameter, name) for name in names if name in parameter.lora_A])
        return parts.sum(0)
    low_rank = factors(model, module_name, adapter)
    if low_rank is not None and base is None:
        product = low_rank.B.double() @ low_rank.A.double()
        return (product * low_rank.scaling).float()
    if parameter is not None:
        raise NotSupported(f"{module_name} is adapted in a parameter; compare it with the true base's directly.")
    before = base.get_submodule(module_name) if base is not None else module
    after = _weight(module, names, module_name)
    return (after - _weight(before, [], module_name).to(after.device)).float()


def factors(model: Any, module_name: str, adapter: str | None = None) -> Factors | None:
    """The low-rank factors of a plain LoRA at ``module_name``, not copied; None for every other adapter.

    The rank is read from the shapes, the scaling covers rsLoRA, rank patterns and ``set_scale``. Several active LoRAs
    are one of their summed rank, with scaling 1. An embedding's factors give its change as [token, width].
    """
    adapter = _known(model, adapter)
    return _plain_factors(model, *_find(model, module_name, adapter), adapter)


def factors_by_module(model: Any, adapter: str | None = None) -> dict[str, Factors | None]:
    """:func:`factors` of every adapted module, sorted by name; the model is walked through once."""
    adapted = _adapted(model, _known(model, adapter))
    return {name: _plain_factors(model, *adapted[name], adapter) for name in sorted(adapted)}


def _plain_factors(model: Any, module: Any, parameter: Any, adapter: str | None) -> Factors | None:
    names = [adapter] if adapter is not None else acting_adapters(module)
    parts = [None if parameter is not None else _factors(model, module, name) for name in names]
    plain = [part for part in parts if part is not None]
    if len(plain) < len(parts) or not plain:
        return None
    if len(plain) == 1:
        return plain[0]
    up = torch.cat([part.B.float() * part.scaling for part in plain], 1)
    return Factors(torch.cat([part.A.float() for part in plain]), up, 1.0)


def _factors(model: Any, module: Any, name: str) -> Factors | None:
    if model.peft_config[name].peft_type.value != "LORA" or getattr(module, "lora_variant", {}).get(name) is not None:
        return None
    if name in getattr(module, "lora_embedding_A", {}):
        return Factors(module.lora_embedding_B[name].T, module.lora_embedding_A[name].T, _scaling(module, name))
    down, up = (getattr(module, part, {}) for part in ("lora_A", "lora_B"))
    if name not in down or not isinstance(down[name], nn.Linear):
        return None
    return Factors(down[name].weight, up[name].weight, _scaling(module, name))


@torch.no_grad()
def bias_changes(model: Any) -> dict[str, Float[Tensor, " out"]]:
    """Module -> the change of its bias that the active adapters make: LoRAs with ``lora_bias``, IA3, GLoRA and others.

    A LoRA's is read from its factors, that of every other type from what the module makes of an input of zeros.
    """
    changes: dict[str, Tensor] = {}
    for name, (module, parameter) in _adapted(model, None).items():
        if parameter is not None:
            continue
        adapters = acting_adapters(module)
        if all(model.peft_config[adapter].peft_type.value == "LORA" for adapter in adapters):
            biased = getattr(module, "lora_bias", {})
            parts = [a for a in adapters if isinstance(biased, dict) and biased.get(a)]
            if parts:
                changes[name] = sum(module.lora_B[a].bias.detach().float() * _scaling(module, a) for a in parts)
        elif (change := _change_at_zero(module, adapters)) is not None:
            changes[name] = change
    return changes


def _change_at_zero(module: Any, adapters: list[str]) -> Float[Tensor, " out"] | None:
    """What the adapters add to a linear map's output for an input of zeros; None where that is nothing."""
    inner: Any = bare_module(module) or module
    size = widths(inner)
    if size is None or isinstance(inner, nn.Embedding) or not inner.weight.is_floating_point():
        return None
    clone = _standalone(module).float()  # some types compute in float32 alone
    zeros = torch.zeros(1, 1, size[1], device=inner.weight.device)
    outputs = []
    for on in (True, False):
        for layer in adapter_layers(clone):
            layer._disable_adapters, layer._active_adapter = not on, list(adapters)
        outputs.append(clone(zeros)[0, 0])
    change = outputs[0] - outputs[1]
    return change if bool(change.any()) else None


def _scaling(module: Any, adapter: str) -> float:
    return float(module.scaling[adapter])


def _known(model: Any, adapter: str | None) -> str | None:
    if adapter is not None and adapter not in model.peft_config:
        raise unknown_name("adapter", adapter, model.peft_config)
    return adapter


def _adapted(model: Any, adapter: str | None) -> dict[str, tuple[Any, Any]]:
    """Base name -> (adapter layer, the wrapper of the one parameter it adapts or None); of the active ones for None."""
    from peft.tuners.lora.layer import ParamWrapper

    layers: dict[str, tuple[Any, Any]] = {}
    outer = "\0"
    for name, module in model.get_base_model().named_modules():
        if bare_module(module) is None or name.startswith(outer):
            continue
        outer = f"{name}."
        if not isinstance(module, ParamWrapper):
            if _takes_part(module, adapter):
                layers[name] = (module, None)
            continue
        layer: Any = module  # one wrapper around another, one for each parameter
        while isinstance(layer, ParamWrapper):
            if any(own in layer.lora_A for own in ([adapter] if adapter is not None else acting_adapters(layer))):
                layers[f"{name}.{layer.parameter_name}"] = (layer, layer)
            layer = layer.base_layer
    return layers


def _takes_part(layer: Any, adapter: str | None) -> bool:
    return bool(acting_adapters(layer)) if adapter is None else adapter in layer._get_available_adapters()


def _find(model: Any, module_name: str, adapter: str | None) -> tuple[Any, Any]:
    adapted = _adapted(model, adapter)
    if module_name not in adapted:
        of = "the active adapters" if adapter is None else f"the adapter {adapter!r}"
        raise unknown_name(f"module of {of}", module_name, adapted)
    return adapted[module_name]


def _parameter_delta(wrapper: Any, adapter: str) -> Float[Tensor, "*expert out in"]:
    down, up = wrapper.lora_A[adapter].weight.double(), wrapper.lora_B[adapter].weight.double()
    if wrapper.num_experts == 1:
        return (up @ down * _scaling(wrapper, adapter)).float()
    down = down.reshape(wrapper.num_experts, -1, down.shape[-1])
    up = up.reshape(up.shape[0], -1, wrapper.num_experts)
    return (torch.einsum("ore,eri->eoi", up, down) * _scaling(wrapper, adapter)).float()


def _weight(module: nn.Module, adapters: list[str], name: str) -> Float[Tensor, "out in"]:
    """The weight acting at ``module`` in float64, with these ``adapters`` on."""
    size = widths(bare_module(module) or module)
    if size is None:
        what = type(bare_module(module) or module).__name__
        raise NotSupported(f"{name} is no linear map ({what}): it has no change of weights [out, in].")
    clone = _standalone(module)
    for layer in adapter_layers(clone):
        layer._disable_adapters = not adapters
        if adapters:
            layer._active_adapter = list(adapters)
    inner: Any = bare_module(clone) or clone
    device = inner.weight.device
    if isinstance(inner, nn.Embedding):
        rows: Tensor = clone(torch.arange(size[0], device=device)[None])[0]
        return rows / float(getattr(inner, "embed_scale", 1.0))
    return _linear_part(clone, size[1], device, name)


def _linear_part(module: nn.Module, width: int, device: torch.device, name: str) -> Float[Tensor, "out in"]:
    identity = torch.eye(width, dtype=torch.float64, device=device)
    try:
        at_zero = module(torch.zeros_like(identity[None, :1]))[0]
    except RuntimeError as failure:
        if "scalar type Double" not in str(failure):
            raise
        return _linear_in_single(module, width, device, name)  # AdaMSS builds its factors in float32
    weight: Tensor = (module(identity[None])[0] - at_zero).T
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(1, 3, width, dtype=torch.float64, generator=generator).to(device) * width**0.5
    expected = trial[0] @ weight.T
    error = (module(trial)[0] - at_zero - expected).norm() / expected.norm()
    if float(error) > _NONLINEAR_ABOVE:
        raise NotSupported(
            f"The adapter at {name} is not linear in its input (relative error {float(error):.1g}): "
            "it has no one change of weights."
        )
    return weight


def _linear_in_single(module: nn.Module, width: int, device: torch.device, name: str) -> Float[Tensor, "out in"]:
    """The same where a type cannot compute in float64."""
    single = _Single(module.float())
    return _linear_part(single, width, device, name)


class _Single(nn.Module):
    """Takes and gives float64, computing in float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.float()).double()


def _standalone(module: nn.Module) -> nn.Module:
    """A float64 copy of one module and its adapter layers, without hooks; offloaded weights are fetched."""
    from accelerate.utils import align_module_device

    memo: dict[int, Any] = {}
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
            # a hook may hold on to the whole model: the copy gets none
            memo.update({id(part.__dict__[key]): OrderedDict() for key in _HOOK_DICTS})
            memo.update({id(part.__dict__[key]): _NOTHING for key in _REPLACED if key in part.__dict__})
        if not all(weight.is_floating_point() for weight in module.parameters()):
            raise NotSupported("The effective change on quantized weights is not read; load the base unquantized.")
        clone = copy.deepcopy(module, memo)
    for part in clone.modules():
        for key in _REPLACED:
            part.__dict__.pop(key, None)
    clone = clone.cpu() if next(clone.parameters()).device.type == "mps" else clone  # mps has no float64
    return clone.double().eval()


_NOTHING = object()
