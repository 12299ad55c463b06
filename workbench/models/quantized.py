"""What a loaded model's quantized weights stand for, and the numbers beside them that belong to their identity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from workbench.errors import NotSupported
from workbench.models.adapter_layers import bare_module, base_tensors
from workbench.models.loading import quantization
from workbench.typing import Float, Tensor

Reader = Callable[[], Tensor]
_REPACKS = "support_avx512bf16_for_cpu"
"""What a layer of bitsandbytes has where it repacks its 4-bit weights for the processor."""
_BITSANDBYTES = ("Params4bit", "Int8Params")
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FP8_SCALES = ("weight_scale_inv", "activation_scale", "input_scale", "weight_scale")


def weight_readers(model: Any) -> dict[str, Reader]:
    """Base name -> reader of every weight and saved buffer of the model under its adapters; quantized ones as floats.

    Those are what the quantized codes stand for: bitsandbytes 4 and 8 bits, and float8 in blocks.

    Raises:
        NotSupported: for weights that another package packed.
    """
    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    if quantization(root.config) is None:
        return {name: partial(_same, tensor) for name, tensor in base_tensors(root)}
    readers: dict[str, Reader] = {}
    for name, tensor in base_tensors(root):
        owner, _, own = name.rpartition(".")
        module = _module(root, owner)
        if own == "weight" and (type(module.weight).__name__ in _BITSANDBYTES or tensor.dtype in _FP8):
            readers[name] = partial(dequantized, module)
        elif own not in _FP8_SCALES and tensor.is_floating_point():
            readers[name] = partial(_same, tensor)
        elif not tensor.is_floating_point():
            raise NotSupported(
                f"The weights of {type(module).__name__} at {owner} are packed ({quantization(root.config)}) in a way "
                "that is not read back: load the model unquantized, or give an unquantized checkpoint."
            )
    return readers


def dequantized(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight that a bitsandbytes or block-float8 linear layer stands for, in floats."""
    weight: Any = module.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        codes, _, state = _four_bits(weight)
        whole: Tensor = dequantize_4bit(codes, state)
        return whole.float()
    if type(weight).__name__ in _BITSANDBYTES:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight_in_full: Tensor = dequantize_bnb_weight(weight, getattr(module, "state", None))
        return weight_in_full.detach().float()
    inverse: Any = module.weight_scale_inv
    scale: Tensor = inverse.detach().float()
    if scale.ndim == 2 and scale.numel() > 1:
        blocks = getattr(module, "block_size", None) or (128, 128)
        rows, columns = (
            size if parts == 1 else block for size, parts, block in zip(weight.shape, scale.shape, blocks, strict=True)
        )
        scale = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)[:, : weight.shape[1]]
    return weight.detach().float() * scale


def leave_unpackable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights whose rows are no whole number of blocks, at which it fails."""
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and getattr(module, _REPACKS, False) and state.shape[1] % state.blocksize:
            setattr(module, _REPACKS, False)


@contextmanager
def without_cpu_packing(model: nn.Module) -> Iterator[None]:
    """Forward passes that leave bitsandbytes' 4-bit weights as they are stored.

    On processors with AVX-512 its layers repack their weights for good in the first forward pass, and ``state_dict``
    (which PEFT calls as it loads an adapter) brings them back with scales out of order (bitsandbytes 0.50).
    """
    layers = [module for module in model.modules() if getattr(module, _REPACKS, False)]
    for layer in layers:
        setattr(layer, _REPACKS, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, _REPACKS, True)


def quantized_parts(model: Any) -> Iterator[tuple[str, Tensor]]:
    """What bitsandbytes' weights are made of, by name: codes and scales, the same before and after a forward pass."""
    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    if quantization(root.config) is None:
        return
    for name, parameter in root.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if getattr(parameter, "quant_state", None) is not None:
            codes, scales, _ = _four_bits(parameter)
            yield from ((plain, codes.reshape(-1)), (f"{plain}.absmax", scales.bfloat16()))
        elif getattr(parameter, "SCB", None) is not None:
            yield f"{plain}.SCB", parameter.SCB


def _four_bits(weight: Any) -> tuple[Tensor, Float[Tensor, " block"], Any]:
    """Codes, scales and quantization state of a 4-bit weight as they are stored, whatever its layout now."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_blockwise

    state, codes = copy.copy(weight.quant_state), weight.data
    scales = state.absmax
    if getattr(state, "packing_format_for_cpu", False):
        scales = scales.T.reshape(-1)
        codes, state = _convert_weight_packed_for_cpu_inverse(codes, state)
    elif state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    state.absmax, state.nested, state.state2, state.offset = scales.float().contiguous(), False, None, None
    return codes, state.absmax, state


def _module(root: nn.Module, path: str) -> Any:
    """The base's own module at ``path``, under any adapter layers."""
    module = root
    for part in path.split("."):
        module = bare_module(module) or module
        module = getattr(module, part)
    return bare_module(module) or module


def _same(tensor: Tensor) -> Tensor:
    return tensor
