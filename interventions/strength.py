"""Strength: one number, or one per prompt of the batch; and tensors made ready for the running model once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from workbench.engine.context import ForwardContext
from workbench.errors import UserError
from workbench.typing import Tensor

Number = int | float
Strength = int | float | Sequence[int | float] | Tensor


def as_strength(strength: Strength) -> float | Tensor:
    """A float, or a tensor [row]; a tensor that is being trained stays the tensor it is."""
    value: Any = strength
    if not isinstance(value, (int, float, Tensor)):
        try:
            value = torch.tensor([float(number) for number in value])
        except (TypeError, ValueError):
            raise UserError(f"Strength {strength!r} is not a number or a list with one number per prompt.") from None
    if isinstance(value, Tensor):
        if value.ndim > 1:
            raise UserError(f"Strength has shape {list(value.shape)}: give one number, or one per prompt [row].")
        if not bool(torch.isfinite(value).all()):
            raise UserError("Strength holds NaN or infinity: give finite numbers.")
        return value if value.ndim or value.requires_grad else float(value)
    if not math.isfinite(value):
        raise UserError(f"Strength is {value}: give a finite number.")
    return float(value)


def multiplied(strength: Strength, factor: Number) -> float | Tensor:
    """``factor`` times ``strength``."""
    return as_strength(as_strength(strength) * factor)


def trains(*parts: Any) -> bool:
    """Whether any of these tensors is being trained, or depends on what is."""
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype for projections beside values of ``dtype``: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Prepared:
    """A tensor computed once for the device, dtype and batch of the model, and anew each time while it is trained.

    ``build(value, ctx)`` makes it for a site's value; ``rows``: it has one entry per batch row.
    """

    def __init__(
        self, build: Callable[[Tensor, ForwardContext], Tensor], *, trained: bool = False, rows: bool = False
    ) -> None:
        self._build = build
        self._trained = trained
        self._rows = rows
        self._made: dict[Any, Tensor] = {}

    @classmethod
    def constant(cls, make: Callable[[], Tensor], *, trained: bool = False) -> Prepared:
        """``make()`` on the value's device, in the dtype for projections beside it."""
        return cls(lambda value, _: make().to(value.device, working(value.dtype)), trained=trained)

    def __call__(self, value: Tensor, ctx: ForwardContext) -> Tensor:
        if self._trained:
            return self._build(value, ctx)
        key = (value.device, value.dtype, ctx.batch, ctx.n_prompts) if self._rows else (value.device, value.dtype)
        made = self._made.get(key)
        if made is None:
            with torch.inference_mode(False), torch.no_grad():
                made = self._made[key] = self._build(value, ctx)
        return made


class Amount:
    """A strength as a factor for values [batch, pos, ...]: a float, or a tensor [batch, 1, ...]."""

    def __init__(self, strength: Strength) -> None:
        self.value = as_strength(strength)
        self.per_row = isinstance(self.value, Tensor) and self.value.ndim == 1
        self._expanded = Prepared(self._expand, trained=trains(self.value), rows=self.per_row)

    def __call__(self, value: Tensor, ctx: ForwardContext) -> float | Tensor:
        """The factor for ``value``; in float32, or float64 beside float64."""
        return self.value if isinstance(self.value, float) else self._expanded(value, ctx)

    def _expand(self, value: Tensor, ctx: ForwardContext) -> Tensor:
        assert isinstance(self.value, Tensor)
        amount = self.value.to(value.device, working(value.dtype))
        return for_rows(amount, ctx, "strengths").view(-1, *[1] * (value.ndim - 1)) if self.per_row else amount


def for_rows(values: Tensor, ctx: ForwardContext, what: str) -> Tensor:
    """``values`` [prompt, ...] as [batch, ...]: every beam and sample gets its prompt's entry."""
    if len(values) != ctx.n_prompts:
        raise UserError(
            f"There are {len(values)} {what} but the batch has {ctx.n_prompts} prompts: give one per prompt."
        )
    return values.to(ctx.device)[ctx.rows]
