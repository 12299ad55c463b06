"""Patching estimated by gradients: attribution patching, and its integrated-gradient form.

Attribution patching (Nanda 2023; Syed et al. 2023) is the first-order effect (source - target) . gradient: two
forward passes and one backward pass per batch for every cell at once. Integrated gradients average the gradient along
the straight line from the target's to the source's value at one site and layer, so that the estimates of a layer's
heads sum to the exact effect of patching them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from probes.patches.cells import HEADS, Cell
from probes.patches.runs import TargetRun
from probes.patches.sweep import Prepared, prepared
from probes.patches.task import Task
from probes.replay import frozen
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.typing import Float, Tensor

Place = tuple[str, int]
"""(kind, layer)"""


def attributions(
    task: Task, cells: Sequence[Cell], metric: str, *, steps: int = 0, batch_size: int = 16
) -> tuple[Float[np.ndarray, "prompt cell"], float, int]:
    """Estimated effect of patching each cell by itself, and the forward and backward passes spent.

    ``steps`` 0: attribution patching; otherwise integrated gradients with that many points per site and layer.
    """
    found = np.zeros((len(task.target_ids), len(cells)))
    passes, backward = 0.0, 0
    by_place: dict[Place, list[int]] = {}
    for index, cell in enumerate(cells):
        by_place.setdefault((cell.kind, cell.layer), []).append(index)
    groups = [[place] for place in by_place] if steps else [list(by_place)]
    for one in prepared(task, [(cell,) for cell in cells], metric, batch_size):
        with frozen(task.target.hf):
            for places in groups:
                path = _Path(one.run, steps, {place: [cells[index] for index in by_place[place]] for place in places})
                for place, products in path.products(one).items():
                    for index in by_place[place]:
                        found[one.members, index] = _of_cell(products, cells[index])
                backward += 1
        passes += one.run.passes + one.recorded
    return found, passes, backward


def _of_cell(products: Tensor, cell: Cell) -> np.ndarray:
    """``products`` [prompt, pos] or [prompt, pos, head], summed over the cell."""
    chosen = products[:, cell.columns]
    chosen = chosen if cell.head is None else chosen[..., cell.head]
    return chosen.sum(1).double().cpu().numpy()


class _Path:
    """A target run whose values at some sites carry gradients, at points between target and source."""

    def __init__(self, run: TargetRun, steps: int, cells: dict[Place, list[Cell]]) -> None:
        self.run, self.steps, self.cells = run, steps, cells
        self.copies = max(1, steps)
        self.leaves: dict[Place, Tensor] = {}
        self.own: dict[Place, Tensor] = {}
        """The target's value of each patched site (z for heads), [prompt, pos, ...]."""

    def products(self, one: Prepared) -> dict[Place, Tensor]:
        """(source - target) . gradient at every position (and head) of every site, averaged over the path."""
        hooks = [hook for place in self.cells for hook in self._hooks(place)]
        start = min(layer for _, layer in self.cells)
        logits = self.run.replay(self.copies, hooks, start, grad=True)
        places = list(self.leaves)
        # The copies of a prompt do not touch each other, so one backward pass of the sum serves them all.
        total = one.metric(logits).sum()
        gradients = torch.autograd.grad(total, [self.leaves[place] for place in places])
        return {
            place: self._product(place, gradient.unflatten(0, (-1, self.copies)).mean(1).detach())
            for place, gradient in zip(places, gradients, strict=True)
        }

    def _hooks(self, place: Place) -> list[SiteHook]:
        kind, layer = place
        if kind == "write":
            return [
                SiteHook(Site("z", layer), self._note(place)),
                SiteHook(Site("attn_out", layer), self._leaf(place), edit=True),
            ]
        return [SiteHook(Site("z" if kind in HEADS else kind, layer), self._leaf(place), edit=True)]

    def _note(self, place: Place) -> Callable[[Tensor, ForwardContext], None]:
        def note(value: Tensor, _ctx: ForwardContext) -> None:
            self.own[place] = value.detach().unflatten(0, (-1, self.copies))[:, 0]

        return note

    def _leaf(self, place: Place) -> Callable[[Tensor, ForwardContext], Tensor]:
        def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
            if place[0] != "write":
                self.own[place] = value.detach().unflatten(0, (-1, self.copies))[:, 0]
            if self.steps:
                value = self._between(place, value.detach())
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            self.leaves[place] = value
            return value

        return edit

    def _between(self, place: Place, value: Tensor) -> Tensor:
        """Each copy a point of the way to the source, at the patched positions."""
        points = (torch.arange(self.steps, device=value.device, dtype=value.dtype) + 0.5) / self.steps
        shift = self._shift(place)
        reached = torch.zeros(shift.shape[1], device=value.device, dtype=value.dtype)
        for cell in self.cells[place]:
            reached[cell.columns] = 1
        shift = shift * reached.view(-1, *[1] * (shift.ndim - 2))
        way = points.view(-1, *[1] * (shift.ndim - 1)) * shift[:, None]
        return (value.unflatten(0, (-1, self.copies)) + way).flatten(0, 1)

    def _shift(self, place: Place) -> Tensor:
        """Source minus target at the site; for writes, summed over the heads."""
        kind, layer = place
        source = self.run.source[Site("z" if kind in HEADS else kind, layer)]
        if kind != "write":
            return source.to(self.own[place]) - self.own[place]
        theirs, ours = self.run.matrices_of(layer)
        own = self.own[place]
        return torch.einsum("bphk,hkd->bpd", source.to(own), theirs) - torch.einsum("bphk,hkd->bpd", own, ours)

    def _product(self, place: Place, gradient: Tensor) -> Tensor:
        kind, layer = place
        own = self.own[place]
        source = self.run.source[Site("z" if kind in HEADS else kind, layer)].to(own)
        if kind != "write":
            return ((source - own) * gradient).sum(-1)
        theirs, ours = self.run.matrices_of(layer)
        by_theirs = torch.einsum("bpd,hkd->bphk", gradient, theirs)
        by_ours = torch.einsum("bpd,hkd->bphk", gradient, ours)
        return (source * by_theirs - own * by_ours).sum(-1)
