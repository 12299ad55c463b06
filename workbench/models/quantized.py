"""What a loaded model's quantized weights stand for, and the numbers beside them that belong to their identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from workbench.errors import NotSupported
from workbench.models.adapters import bare_module, base_tensors
from workbench.models.loading import quantization
from workbench.typing import Float, Tensor

Reader = Callable[[], Tensor]
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
    if type(weight).__name__ in _BITSANDBYTES:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        found: Tensor = dequantize_bnb_weight(weight, getattr(module, "state", None))
        return found.detach().float()
    scale: Tensor = module.weight_scale_inv.detach().float()
    if scale.ndim == 2 and scale.numel() > 1:
        blocks = getattr(module, "block_size", None) or (128, 128)
        rows, columns = (size if parts == 1 else block for size, parts, block in zip(weight.shape, scale.shape, blocks))
        scale = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)[:, : weight.shape[1]]
    return weight.detach().float() * scale


def quantization_state(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Scales and codebooks that lie beside the model's quantized weights and are no parameters of their own."""
    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    if quantization(root.config) is None:
        return
    for name, parameter in root.named_parameters(remove_duplicate=True):
        plain = name.replace(".base_layer.", ".")
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield from ((f"{plain}.{key}", part) for key, part in state.as_dict(packed=True).items())
        elif getattr(parameter, "SCB", None) is not None:
            yield f"{plain}.SCB", parameter.SCB


def _module(root: nn.Module, path: str) -> Any:
    """The base's own module at ``path``, under any adapter layers."""
    module = root
    for part in path.split("."):
        module = bare_module(module) or module
        module = getattr(module, part)
    return bare_module(module) or module


def _same(tensor: Tensor) -> Tensor:
    return tensor
