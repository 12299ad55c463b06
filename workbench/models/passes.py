"""Forward passes of models, counted wherever they run: here, before a run was stopped, or in another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.engine.families import submodule
from workbench.finished_batches import counting
from workbench.models.adapted import AdaptedModel


@dataclass
class Passes:
    """Forward passes through a model's body, as batches."""

    forward: int = 0


_COUNTING: ContextVar[tuple[tuple[Passes, frozenset[int]], ...]] = ContextVar("tunescope_passes", default=())
"""Open counters, each with the identities of the models' bodies that it counts."""


@contextmanager
def counted(*models: AdaptedModel) -> Iterator[Passes]:
    """Count the forward passes of ``models`` inside the context, generation steps one by one."""
    passes, bodies = Passes(), {id(model.inner): model for model in models}

    def count(_module: nn.Module, _args: Any) -> None:
        passes.forward += 1

    with ExitStack() as stack:
        for model in bodies.values():
            # the module around the layers: OPT's head calls that, and not the body
            decoder = submodule(model.inner, model.hub.family.layers.rpartition(".")[0])
            stack.callback(decoder.register_forward_pre_hook(count).remove)
        stack.enter_context(counting(passes))
        token = _COUNTING.set((*_COUNTING.get(), (passes, frozenset(bodies))))
        stack.callback(_COUNTING.reset, token)
        yield passes


def add_passes(model: AdaptedModel, count: int) -> None:
    """Tell the open counters of ``model`` of passes that another process made with its own copy."""
    for passes, bodies in _COUNTING.get():
        if id(model.inner) in bodies:
            passes.forward += count
