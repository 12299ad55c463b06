"""Per-expert outputs inside fused experts, through a registered experts function.

The experts of a layer are one module with 3-D weights, so no hook sees a single expert. While an expert site is
in use the model runs this function instead: the model's own grouped kernel once per (token, slot), unweighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

from workbench.typing import Float, Int, Tensor

NAME = "tunescope"
_TAPS: dict[int, Callable[[Any], Any]] = {}


@dataclass(frozen=True)
class ExpertOutputs:
    """What the selected experts of one layer computed, before they are summed."""

    outputs: Float[Tensor, "token k d_model"]
    """Unweighted."""
    experts: Int[Tensor, "token k"]
    weights: Float[Tensor, "token k"]
    changed: dict[int, Tensor] = field(default_factory=dict)
    """expert -> its replaced contribution [token, d_model]."""

    def contribution(self, expert: int) -> Float[Tensor, "token d_model"]:
        """What ``expert`` adds to each token: weight times output, 0 where it is not selected."""
        if expert in self.changed:
            return self.changed[expert]
        used = (self.experts == expert) * self.weights
        return (self.outputs * used.unsqueeze(-1)).sum(1).to(self.outputs.dtype)

    def with_contribution(self, expert: int, value: Float[Tensor, "token d_model"]) -> ExpertOutputs:
        """The same, with ``expert`` adding ``value`` instead."""
        return replace(self, changed={**self.changed, expert: value})

    def total(self) -> Float[Tensor, "token d_model"]:
        """The sum over experts."""
        total = (self.outputs * self.weights.unsqueeze(-1)).sum(1).to(self.outputs.dtype)
        for expert, value in self.changed.items():
            total = total + value - replace(self, changed={}).contribution(expert)
        return total


def tapped_experts(self: nn.Module, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """An experts function of transformers: ``hidden`` [token, d_model] -> [token, d_model]."""
    tokens, slots = experts.shape
    ones = torch.ones_like(weights).reshape(-1, 1)
    outputs = grouped_mm_experts_forward(self, hidden.repeat_interleave(slots, 0), experts.reshape(-1, 1), ones)
    raw = ExpertOutputs(outputs.view(tokens, slots, -1), experts, weights)
    tap = _TAPS.get(id(self))
    changed = tap(raw) if tap is not None else None
    return (raw if changed is None else changed).total().to(hidden.dtype)


ExpertsInterface.register(NAME, tapped_experts)


@contextmanager
def tapped(hf: Any) -> Iterator[None]:
    """Let ``hf`` run its experts through :func:`tapped_experts` inside the context."""
    before = hf.config._experts_implementation
    hf.set_experts_implementation(NAME)
    try:
        yield
    finally:
        if hf.config._experts_implementation == NAME:  # another one was chosen inside: it stays
            hf.set_experts_implementation(before)


def set_tap(module: nn.Module, tap: Callable[[Any], Any]) -> Callable[[], None]:
    """Hand the outputs of an experts module to ``tap``; returns the function that takes the tap away."""
    _TAPS[id(module)] = tap
    return lambda: _TAPS.pop(id(module), None) and None
