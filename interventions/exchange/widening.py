"""A model of half precision in float32 for a while: what is checked there does not drown in rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from workbench.typing import Tensor

_HALF = (torch.bfloat16, torch.float16)


def widen(hf: nn.Module) -> dict[str, torch.dtype]:
    """Hold every tensor of half precision in float32, which is exact; returns the dtypes of before, by name."""
    before = {name: tensor.dtype for name, tensor in _tensors(hf) if tensor.dtype in _HALF}
    for name, tensor in _tensors(hf):
        if name in before:
            tensor.data = tensor.data.float()
    return before


def narrow(hf: nn.Module, dtypes: dict[str, torch.dtype], new: torch.dtype) -> None:
    """Round the tensors named in ``dtypes`` to those dtypes, and parameters that came since to ``new``.

    Tensors that were float32 before stay so (rotary frequencies, routers).
    """
    if not dtypes:
        return
    parents = {name.rpartition(".")[0] for name in dtypes}
    for name, tensor in _tensors(hf):
        came_since = name.rpartition(".")[0] in parents and name.endswith(".bias")
        if tensor.dtype == torch.float32 and (name in dtypes or came_since):
            tensor.data = tensor.data.to(dtypes.get(name, new))


def _tensors(hf: Any) -> Iterator[tuple[str, Tensor]]:
    """Under every name: a tied tensor may be untied before it is narrowed."""
    yield from hf.named_parameters(remove_duplicate=False)
    yield from hf.named_buffers(remove_duplicate=False)
