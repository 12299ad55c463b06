"""Where an intervention acts: positions decided once per forward pass, and values blended there."""

from __future__ import annotations

from collections.abc import Callable
from sys import intern
from typing import Any

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Selection, Where, select, where
from workbench.typing import Tensor

__all__ = ["Change", "Scope", "Where", "blend"]

Change = Callable[[Any, ForwardContext], Any]
"""(value at a site, forward pass) -> the changed value, of the same shape and dtype, or None: unchanged."""


class Scope:
    """Positions, evaluated at most once per forward pass for all interventions that share them."""

    def __init__(self, positions: PositionSpec | Where) -> None:
        self.where = where(positions)
        self._key = intern(f"scope {self.where!r}")  # looked up at every site of every pass

    def __call__(self, ctx: ForwardContext) -> Selection:
        chosen: Selection | None = ctx.scratch.get(self._key)
        if chosen is None:
            chosen = ctx.scratch[self._key] = select(self.where, ctx)
        return chosen


def blend(chosen: Selection, new: Tensor, old: Tensor) -> Tensor:
    """``new`` at the chosen positions and ``old`` elsewhere, bit for bit; both [batch, pos, ...]."""
    if chosen.everything or new is old:
        return new
    assert chosen.mask is not None
    return torch.where(chosen.mask.view(*chosen.mask.shape, *[1] * (old.ndim - 2)), new, old)
