"""Gradients of a metric at many sites of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from probes.patches.cells import HEADS
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.typing import Float, Tensor

Place = tuple[str, int]
"""(kind of cell, layer)"""
Move = Callable[[Tensor], Tensor]


def site_of(place: Place) -> Site:
    """Where the value of a place is recorded: z for a head, whichever way it is patched."""
    kind, layer = place
    return Site("z" if kind in HEADS else kind, layer)


class Leaves:
    """Values of a forward pass by which a metric is differentiated; a head's write is one at the attention's output.

    The graph begins at the first of them. Without ``move`` they stay what they are, bit for bit.
    """

    def __init__(self, places: Iterable[Place], move: Move | None = None) -> None:
        self._move = move
        self._values: dict[Place, Tensor] = {}
        self.hooks = [SiteHook(_felt_at(place), self._leaf(place), edit=True) for place in places]
        """For the forward pass."""

    def gradients(self, total: Float[Tensor, ""]) -> dict[Place, Tensor]:
        """d ``total`` / d value at every place, in one backward pass, which frees the graph."""
        slopes = torch.autograd.grad(total, list(self._values.values()))
        places = list(self._values)
        self._values.clear()
        return dict(zip(places, slopes, strict=True))

    def _leaf(self, place: Place) -> Callable[[Tensor, ForwardContext], Tensor]:
        def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
            value = value if self._move is None else self._move(value.detach())
            value = value if value.requires_grad else value.detach().requires_grad_()
            self._values[place] = value
            return value

        return edit


def _felt_at(place: Place) -> Site:
    return Site("attn_out", place[1]) if place[0] == "write" else site_of(place)
