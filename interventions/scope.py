"""Where an intervention acts: positions decided once per forward pass, and values blended there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from sys import intern
from typing import TYPE_CHECKING, Any

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Selection, Where, needs_prompt, select, where
from workbench.typing import Tensor

if TYPE_CHECKING:
    from interventions.gate import Gate

__all__ = ["Change", "Scope", "UnknownPromptWarning", "Where", "blend", "tell_unknown_prompt"]

Change = Callable[[Any, ForwardContext], Any]
"""(value at a site, forward pass) -> the changed value, of the same shape and dtype, or None: unchanged."""


class UnknownPromptWarning(UserWarning):
    """A text goes on outside ``generate``, so nobody knows which part of it is the prompt."""


def tell_unknown_prompt(scope: Where, ctx: ForwardContext) -> None:
    """Say once in a context that ``scope`` takes everything given so far for the prompt."""
    if ctx.loose is None or ctx.loose.warned:
        return
    ctx.loose.warned = True
    warnings.warn(
        f"This forward pass goes on with a text outside generate(), so the end of the prompt is not known, and "
        f"positions {scope.at!r} take all that was given so far for the prompt: say how long the prompts are, "
        "recipe.applied(model, prompt_lengths=...), or call generate().",
        UnknownPromptWarning,
        stacklevel=2,
    )


class Scope:
    """Positions behind a gate, evaluated at most once per forward pass for all interventions that share them."""

    def __init__(self, positions: PositionSpec | Where, gate: Gate | None = None) -> None:
        self.where = where(positions)
        self.gate = gate
        self._needs_prompt = needs_prompt(self.where)
        behind = "" if gate is None else gate.key
        self._key = intern(f"scope {self.where!r} {behind}")  # looked up at every site of every pass

    def __call__(self, ctx: ForwardContext) -> Selection:
        selection: Selection | None = ctx.scratch.get(self._key)
        if selection is None:
            if ctx.loose is not None and self._needs_prompt:
                tell_unknown_prompt(self.where, ctx)
            selection = select(self.where, ctx)
            selection = ctx.scratch[self._key] = selection if self.gate is None else _behind(self.gate, selection, ctx)
        return selection


def _behind(gate: Gate, selection: Selection, ctx: ForwardContext) -> Selection:
    """What of ``selection`` the gate lets through."""
    if selection.nothing:
        return selection
    mask = gate.open(ctx)
    return Selection(everything=False, nothing=False, mask=mask if selection.mask is None else mask & selection.mask)


def blend(selection: Selection, new: Tensor, old: Tensor) -> Tensor:
    """``new`` at the chosen positions and ``old`` elsewhere, bit for bit; both [batch, pos, ...]."""
    if selection.everything or new is old:
        return new
    assert selection.mask is not None
    return torch.where(selection.mask.view(*selection.mask.shape, *[1] * (old.ndim - 2)), new, old)
