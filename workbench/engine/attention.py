"""Reading and changing attention patterns through a registered attention function.

While a pattern is tapped the model runs ``eager`` attention at the tapped layers (the model family's own eager
function, so soft-caps, sinks and grouped keys stay as they are); the other layers keep sdpa where that was in use.
The mask function is registered too: without it transformers hands over no mask and causality is lost silently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from workbench.typing import Tensor

NAME = "tunescope"
_TAPS: dict[int, Callable[[Tensor], Tensor | None]] = {}
_BEFORE: dict[int, str] = {}


def tapped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers that shows its pattern [batch, head, query, key] to the tap, if any."""
    tap = _TAPS.get(id(module))
    if tap is None and _BEFORE.get(id(getattr(module, "config", None))) == "sdpa":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, pattern = eager(module, query, key, value, attention_mask, **kwargs)
    changed = tap(pattern) if tap is not None else None
    if changed is None:
        return output, pattern
    repeats = query.shape[1] // value.shape[1]
    values = value.repeat_interleave(repeats, dim=1) if repeats > 1 else value
    return torch.matmul(changed.to(values.dtype), values).transpose(1, 2).contiguous(), changed


AttentionInterface.register(NAME, tapped_attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def tapped(hf: Any) -> Iterator[None]:
    """Let ``hf`` run through :func:`tapped_attention` inside the context; its own implementation comes back after."""
    before = hf.config._attn_implementation
    configs = {id(module.config) for module in hf.modules() if hasattr(module, "config")}
    _BEFORE.update(dict.fromkeys(configs, before))
    hf.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if hf.config._attn_implementation == NAME:  # another one was chosen inside: it stays
            hf.set_attn_implementation(before)
        for config in configs:
            _BEFORE.pop(config, None)


def set_tap(module: nn.Module, tap: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    """Hand the pattern of an attention module to ``tap``; returns the function that takes the tap away."""
    _TAPS[id(module)] = tap
    return lambda: _TAPS.pop(id(module), None) and None
