"""Gradient checkpointing: a layer recomputed in backward sees the context of the forward pass it belongs to.

Without this, a loss over two forward passes (DPO's chosen and rejected answers) would recompute the first
with the positions of the second.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from threading import get_ident
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from workbench.engine.hub import Hub

_FUNCTION = "_gradient_checkpointing_func"


class Checkpointed:
    """Stands in for the checkpoint function that transformers put on a layer."""

    def __init__(self, hub: Hub, original: Callable[..., Any]) -> None:
        self.hub = hub
        self.original = original

    def __call__(self, forward: Callable[..., Any], *args: Any) -> Any:
        context = self.hub.context

        def in_its_context(*inputs: Any) -> Any:
            if context is None:
                return forward(*inputs)
            before, thread = self.hub.context, context.thread
            self.hub.context, context.thread = context, get_ident()  # backward has threads of its own
            try:
                return forward(*inputs)
            finally:
                self.hub.context, context.thread = before, thread

        return self.original(in_its_context, *args)


def keep_contexts(hub: Hub, stack: ExitStack) -> None:
    """Wrap the checkpoint function of every module that has one by now; ``stack`` takes the wrappers off.

    Called at each forward pass, because a trainer turns checkpointing on after the context was entered.
    """
    if not hub.hf.training:
        return
    for module in hub.hf.modules():
        original = module.__dict__.get(_FUNCTION)
        if original is not None and not isinstance(original, Checkpointed):
            setattr(module, _FUNCTION, Checkpointed(hub, original))
            stack.callback(_unwrap, module)


def _unwrap(module: nn.Module) -> None:
    wrapper = module.__dict__.get(_FUNCTION)
    if isinstance(wrapper, Checkpointed):
        setattr(module, _FUNCTION, wrapper.original)
