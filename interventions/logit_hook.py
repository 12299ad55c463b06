"""What interventions on logits share: the hook behind the running model, its positions, and what it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch

from interventions.other_models import READING, Reader
from interventions.scope import Scope
from interventions.shared_batch import shared_batch
from interventions.trace import NO_LAYER, watch
from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Where
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Tensor

UNSHIFTED = "logits before any shift"
"""Where a forward pass keeps them, for every intervention on logits."""


class LogitHook(ABC):
    """The hook on the running model's output. A subclass says what it reads beside, and what comes out."""

    def __init__(self, positions: PositionSpec | Where, model: AdaptedModel) -> None:
        self.hub, self.view = model.hub, model.role
        self.scope = Scope(positions)
        self.watch = watch()

    @abstractmethod
    def read(self, kwargs: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:
        """What is read at every pass, also where nothing is changed, since later tokens need it."""

    @abstractmethod
    def combined(self, own: Tensor, *others: Any) -> Tensor:
        """``own`` logits changed; ``others`` is what was read, and the forward pass."""

    def readers(self) -> Iterable[Reader]:
        """The models that read along."""
        return ()

    @contextmanager
    def on(self, model: AdaptedModel) -> Iterator[Any]:
        """The hook is on ``model`` inside, in forward passes and in ``generate``."""
        partners = (reader.model for reader in self.readers() if reader.plain and reader.model.inner is model.inner)
        with model.hooked([]), shared_batch(model, next(partners, None)):  # the hub knows every pass's rows
            handle = model.inner.register_forward_hook(self.hook, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()

    def hook(self, _module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        ctx = self.hub.ended
        if ctx is None or ctx.thread != get_ident() or self.hub.view != self.view or self.hub in READING:
            return None
        with self.hub.listener.running():
            return self._after(kwargs, output, ctx)

    def _after(self, kwargs: dict[str, Any], output: Any, ctx: ForwardContext) -> Any:
        if kwargs.get("labels") is not None:
            raise NotSupported("The loss was computed before the shift: leave labels out and take it from the logits.")
        own: Tensor = output[0] if isinstance(output, tuple) else output.logits
        cache = kwargs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        scope = self.scope(ctx)
        if scope.nothing and cache is None:
            return None
        ctx.scratch.setdefault(UNSHIFTED, own)
        read = tuple(logits.to(own.device) for logits in self.read(kwargs, ctx, cache))
        if scope.nothing:
            return None
        new = self.combined(own, *read, ctx)
        if not scope.everything:
            assert scope.mask is not None
            new = torch.where(_kept(scope.mask, kwargs.get("logits_to_keep", 0))[..., None], new, own)
        if self.watch is not None:
            self.watch(NO_LAYER, "logits", own, new, ctx)
        if isinstance(output, tuple):
            return (new, *output[1:])
        output.logits = new
        return output


def _kept(mask: Bool[Tensor, "batch pos"], keep: Any) -> Bool[Tensor, "batch kept"]:
    """The columns that logits were computed for."""
    if isinstance(keep, Tensor):
        return mask[:, keep]
    return mask[:, -keep:] if keep else mask
