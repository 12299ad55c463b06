"""Base and tuned rows of an adapter pair in one batch, for arithmetic on logits with one copy of the weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn

from interventions.other_models import READING, partner_key
from workbench.engine.context import ForwardContext
from workbench.engine.hub import Hub
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import adapter_layers
from workbench.typing import Tensor

BASE = "__base__"
"""What PEFT calls rows without an adapter."""
_OPEN: weakref.WeakKeyDictionary[Hub, SharedBatch] = weakref.WeakKeyDictionary()


@contextmanager
def shared_batch(model: AdaptedModel, partner: AdaptedModel | None) -> Iterator[None]:
    """Let ``model``, where it generates inside, compute ``partner``'s rows in the same forward passes.

    PEFT's mixed batches: half of the rows go through the adapter and half do not. Beams, adapters other than plain
    LoRA, and hooks at sites keep two passes. Equal to those up to the rounding of a batch of another size.
    """
    hub = model.hub
    if partner is None or hub in _OPEN or not _mixable(model, partner):
        yield
        return
    _OPEN[hub] = shared = SharedBatch(model, partner)
    try:
        with shared.attached():
            yield
    finally:
        del _OPEN[hub]


class SharedBatch:
    """Doubles the batch where it enters the model's body, and parts the logits where they leave the model."""

    def __init__(self, model: AdaptedModel, partner: AdaptedModel) -> None:
        self.hub, self.view, self._hf = model.hub, model.role, model.inner
        self._partner = partner_key(partner)
        self._layers = list(adapter_layers(model.inner))
        name = self._layers[0].active_adapters[0]
        self._own, self._other = (BASE if role == "base" else name for role in (model.role, partner.role))
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()
        self._names: list[str] | None = None
        """Whose row each one of the running batch is; None while the batch is not doubled."""
        self._switches: list[bool] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Torch hooks of ours are on the body, the model and the adapter's layers inside."""
        with ExitStack() as stack:
            doubled = self._hf.base_model.register_forward_pre_hook(self._double, with_kwargs=True)
            parted = self._hf.register_forward_hook(self._part, always_call=True)
            named = [layer.register_forward_pre_hook(self._name_rows, with_kwargs=True) for layer in self._layers]
            for handle in (doubled, parted, *named):
                stack.callback(handle.remove)
            yield

    def _double(self, _body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ctx, cache = self.hub.context, kwargs.get("past_key_values")
        if ctx is None or ctx.thread != get_ident() or not self._takes(ctx, args, kwargs, cache):
            return None
        if cache is not None:
            self._caches.add(cache)
        self._names = [self._own] * ctx.batch + [self._other] * ctx.batch
        self._switches = [layer._disable_adapters for layer in self._layers]
        self._switch([False] * len(self._layers))
        return (
            tuple(_twice(argument, ctx.batch) for argument in args),
            {name: _twice(option, ctx.batch) for name, option in kwargs.items()},
        )

    def _takes(self, ctx: ForwardContext, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any) -> bool:
        """Whether this pass is doubled; a text that was begun so has to go on so."""
        from transformers import DynamicCache

        generation, begun = self.hub.generation, cache is not None and cache in self._caches
        if self._names is not None or self.hub.view != self.view or self.hub in READING or generation is None:
            return False
        if not begun and (ctx.start > 0 or generation.beams > 1):
            return False
        plain = ctx.input_ids is not None and (cache is None or isinstance(cache, DynamicCache))
        plain = plain and not any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        plain = plain and all(_doubles(argument, ctx.batch) for argument in (*args, *kwargs.values()))
        if begun and not (plain and self.hub.n_hooks <= 1):
            raise UserError("Hooks came to a model in the middle of a text: enter all contexts before generate().")
        return plain and (begun or (self.hub.n_hooks <= 1 and not self._others_hooks()))

    def _others_hooks(self) -> bool:
        """Whether anything else hangs on the model's parts, which would see rows that it does not know."""
        ours, entrances = set(self._layers), {self._hf, self._hf.base_model}
        return any(
            len(module._forward_hooks) + len(module._forward_pre_hooks) > (module in ours)
            for module in self._hf.modules()
            if module not in entrances and module is not getattr(self._hf.base_model, "decoder", None)
        )

    def _name_rows(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self._names is None else (args, {**kwargs, "adapter_names": self._names})

    def _part(self, _model: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if self._names is None:
            return None
        rows, self._names = len(self._names) // 2, None
        self._switch(self._switches)
        ctx = self.hub.ended
        if output is None or ctx is None:  # the pass ended in an exception
            return None
        logits = output[0] if isinstance(output, tuple) else output.logits
        ctx.scratch[self._partner] = logits[rows:]
        if isinstance(output, tuple):
            return (logits[:rows], *output[1:])
        output.logits = logits[:rows]
        return output

    def _switch(self, off: list[bool]) -> None:
        for layer, disabled in zip(self._layers, off, strict=True):
            layer._disable_adapters = disabled  # PEFT keeps it in this flag; its public switch rewrites requires_grad


def _mixable(model: AdaptedModel, partner: AdaptedModel) -> bool:
    """Whether both are views of one model whose one adapter is a plain LoRA on linear layers."""
    from peft.tuners.lora.layer import Linear

    layers = list(adapter_layers(model.inner))
    if partner.inner is not model.inner or {model.role, partner.role} != {"base", "tuned"} or not layers:
        return False
    if any(type(layer) is not Linear or layer.lora_variant or layer.merged_adapters for layer in layers):
        return False
    return len({name for layer in layers for name in layer.active_adapters}) == 1


def _doubles(value: Any, rows: int) -> bool:
    """Whether a body's argument can be given twice: it has a row per prompt, or none at all."""
    if isinstance(value, dict):
        return False
    return not isinstance(value, Tensor) or value.ndim < 2 or (value.ndim in (2, 4) and len(value) in (1, rows))


def _twice(value: Any, rows: int) -> Any:
    by_row = isinstance(value, Tensor) and value.ndim >= 2 and len(value) == rows
    return torch.cat([value, value]) if by_row else value
