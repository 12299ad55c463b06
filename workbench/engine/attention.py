"""Reading and changing attention patterns through a registered attention function.

Only ``eager`` attention shows a pattern. While a pattern is tapped the tapped layers run the model family's own eager
function (so soft-caps, sinks and grouped keys stay as they are), unless all that is asked of a layer can be said as a
bias on its attention logits: under sdpa it then goes into the attention mask, and sdpa stays. Untapped layers keep sdpa
with the masks they always had. A mask function is registered for each name: without it transformers hands over no mask
and causality is lost silently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from workbench.typing import Bool, Float, Tensor

NAME = "tunescope"
"""Every layer runs eager attention."""
SDPA_NAME = "tunescope_sdpa"
"""Layers run sdpa, but for those whose pattern is read or changed by more than a bias."""
NAMES = {NAME, SDPA_NAME}
_HELD = "biased mask"
FEW = 4
"""Up to one in so many heads are computed a second time rather than masked beside all the others."""


class AttentionLogits:
    """What is known of a layer's attention logits before they are computed.

    ``query`` is [batch, head, query, d_head], for its sizes, device and dtype.
    """

    def __init__(self, module: nn.Module, query: Tensor, n_keys: int, mask: Tensor | None, causal: bool | None) -> None:
        self.query, self.n_keys, self.mask = query, n_keys, mask
        self.heads: Sequence[int] | None = None
        """The heads that are biased, where not all are."""
        self.causal = getattr(module, "is_causal", True) if causal is None else causal
        self.scratch: dict[Any, Any] = {}
        """What layers of one forward pass share."""
        self._blocked: Tensor | None = None

    def visible(self) -> Bool[Tensor, "rows heads query key"]:
        """Which keys each query can attend to, by the model's mask and by the biases so far."""
        seen = self.model_mask()
        if seen is None:
            seen = torch.ones(1, 1, self.query.shape[2], self.n_keys, dtype=torch.bool, device=self.query.device)
        return seen if self._blocked is None else seen & ~self._blocked

    def model_mask(self) -> Tensor | None:
        """The model's own mask as booleans; None where every query sees every key."""
        if self.mask is not None:
            return self.mask if self.mask.dtype == torch.bool else self.mask > torch.finfo(self.mask.dtype).min / 2
        n_queries, device = self.query.shape[2], self.query.device
        if n_queries == 1 or not self.causal:
            return None
        places = torch.arange(n_queries, device=device)[:, None] >= torch.arange(self.n_keys, device=device)
        return places[None, None]

    def block(self, keys: Tensor) -> None:
        """From now on these keys are not visible."""
        self._blocked = keys if self._blocked is None else self._blocked | keys


@dataclass(frozen=True)
class Tap:
    """What a layer's attention is asked for. ``bias`` gives a bias on the attention logits, or None for none; it
    raises :class:`NeedsPattern` where a pattern is needed, which ``pattern`` then gets."""

    pattern: Callable[[Tensor], Tensor | None]
    bias: Callable[[AttentionLogits], Tensor | None]


class NeedsPattern(Exception):
    """A bias is not enough for what is asked of a layer. Never seen outside the engine."""


_TAPS: dict[int, Tap] = {}


def tapped_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers that shows its pattern [batch, head, query, key] to the tap, if any."""
    tap = _TAPS.get(id(module))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, pattern = eager(module, query, key, value, attention_mask, **kwargs)
    changed = tap.pattern(pattern) if tap is not None else None
    if changed is None:
        return output, pattern
    repeats = query.shape[1] // value.shape[1]
    values = value.repeat_interleave(repeats, dim=1) if repeats > 1 else value
    return torch.matmul(changed.to(values.dtype), values).transpose(1, 2).contiguous(), changed


def tapped_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """sdpa, with the taps' bias in its mask; eager attention where a tap needs the pattern."""
    tap = _TAPS.get(id(module))
    if tap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    logits = AttentionLogits(module, query, key.shape[2], attention_mask, kwargs.get("is_causal"))
    try:
        if kwargs.get("position_bias") is not None:
            raise NeedsPattern
        bias = tap.bias(logits)
    except NeedsPattern:
        return tapped_eager(module, query, key, value, _as_float(logits), **kwargs)
    few = logits.heads is not None and len(logits.heads) * FEW <= query.shape[1] and query.shape[2] > 1
    mask = attention_mask if bias is None or few else _biased(logits, bias, query)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    if bias is not None and few:
        output = _with_heads(output, logits, bias, key, value, kwargs)
    return output, None


def _with_heads(
    output: Float[Tensor, "batch query head d_head"], logits: AttentionLogits, bias: Tensor, key: Tensor, value: Tensor,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Plain attention with the biased heads computed anew: the others keep the fast path without a mask per head."""
    assert logits.heads is not None
    heads = torch.tensor(logits.heads, device=output.device)
    shared = heads // (logits.query.shape[1] // key.shape[1])
    query = logits.query[:, heads]
    part = torch.nn.functional.scaled_dot_product_attention(
        query, key[:, shared], value[:, shared],
        attn_mask=_biased(logits, bias if bias.shape[1] == 1 else bias[:, heads], query),
        dropout_p=options.get("dropout", 0.0), scale=options.get("scaling"),
    )  # fmt: skip
    return output.index_copy(2, heads, part.transpose(1, 2))


def _biased(logits: AttentionLogits, bias: Tensor, query: Tensor) -> Float[Tensor, "batch head query key"]:
    """The model's mask and a bias as one mask for sdpa, for the heads of ``query``.

    The last one is held until the forward pass ends: layers behind each other mostly share mask and bias.
    """
    mask = logits.mask
    about = (tuple(query.shape[:3]), logits.n_keys, query.dtype, logits.causal)
    of = logits.scratch.get(_HELD)
    if of is not None and of[0] is bias and of[1] is mask and of[2] == about:
        made: Tensor = of[3]
        return made
    logits.scratch[_HELD] = None  # let go of that before the next is made
    if mask is not None and mask.dtype != torch.bool:
        biased = mask + bias
    else:
        seen = logits.model_mask()
        biased = bias if seen is None else torch.where(seen, bias, torch.finfo(query.dtype).min)
    made = biased.to(query.dtype).expand(len(query), query.shape[1], query.shape[2], -1)
    logits.scratch[_HELD] = (bias, mask, about, made)
    return made


def _as_float(logits: AttentionLogits) -> Tensor | None:
    """The mask as eager attention takes it: 0 where a key is seen, else the dtype's smallest number."""
    mask, dtype = logits.mask, logits.query.dtype
    if mask is not None and mask.dtype != torch.bool:
        return mask
    seen = logits.model_mask()
    return None if seen is None else torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


AttentionInterface.register(NAME, tapped_eager)
AttentionMaskInterface.register(NAME, eager_mask)
AttentionInterface.register(SDPA_NAME, tapped_sdpa)
AttentionMaskInterface.register(SDPA_NAME, sdpa_mask)


@contextmanager
def tapped(hf: Any) -> Iterator[None]:
    """Let ``hf`` run through a tapped function inside the context; its own implementation comes back after."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation(SDPA_NAME if before == "sdpa" else NAME)
    try:
        yield
    finally:
        if hf.config._attn_implementation in NAMES:  # another one was chosen inside: it stays
            hf.set_attn_implementation(before)


def set_tap(module: nn.Module, tap: Tap) -> Callable[[], None]:
    """Hand the attention of a module to ``tap``; returns the function that takes the tap away."""
    _TAPS[id(module)] = tap

    def remove() -> None:
        _TAPS.pop(id(module), None)

    return remove
