"""Patching estimated by gradients: attribution patching, and its integrated-gradient form.

Attribution patching (Nanda 2023; Syed et al. 2023) is the first-order effect (source - target) . gradient: two
forward passes and one backward pass per batch for every cell at once. Integrated gradients average the gradient along
the straight line from the target's to the source's value at one site and layer, so that the estimates of a layer's
heads sum to the exact effect of patching them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from probes.patches.cells import Cell
from probes.patches.gradients import Leaves, Move, Place, site_of
from probes.patches.recorded import Prepared, Recorded, Share, numbers
from probes.patches.runs import TargetRun
from probes.patches.task import Task
from probes.replay import frozen
from workbench.progress import Progress, Silent
from workbench.typing import Float, Tensor


def attributions(
    task: Task,
    cells: Sequence[Cell],
    metric: str,
    *,
    steps: int = 0,
    batch_size: int = 16,
    runs: Recorded | None = None,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "prompt cell"], float, float]:
    """Estimated effect of patching each cell by itself, and the forward and backward passes spent.

    ``steps`` 0: attribution patching; otherwise integrated gradients with that many points per site and layer.
    ``runs``: where sweeps of this task that follow find what is recorded here.
    """
    runs = Recorded(task, cells, metric, batch_size, keep=0) if runs is None else runs
    forward, backward, report = runs.passes, runs.backward, progress or Silent()
    report.start("Estimating by gradients", len(runs.members))
    effects = np.zeros((len(task.target_ids), len(cells)))
    by_place: dict[Place, list[int]] = {}
    for index, cell in enumerate(cells):
        by_place.setdefault((cell.kind, cell.layer), []).append(index)

    def take(members: list[int], _share: Share, estimates: Float[np.ndarray, "prompt cell"]) -> None:
        effects[members] = estimates
        report.advance(1)

    modes = {_last_only([cells[index] for index in members]) for members in by_place.values()} if steps else set()
    work = partial(_estimated, task, cells, by_place, steps)
    runs.spread(work, take, () if steps else list(by_place), modes=modes)
    report.finish()
    return effects, runs.passes - forward, runs.backward - backward


def _estimated(
    task: Task,
    cells: Sequence[Cell],
    by_place: Mapping[Place, list[int]],
    steps: int,
    runs: Recorded,
    batch: Prepared,
    _share: Share,
) -> Float[np.ndarray, "prompt cell"]:
    """Estimates of every cell on one batch."""
    effects = np.zeros((len(batch.members), len(cells)))
    for place, members in by_place.items():
        if steps:
            gradient = _mean_gradient(runs, batch, place, [cells[index] for index in members], steps)
        else:
            gradient = batch.gradients.pop(place)
        products = _products(batch.run, place, gradient)
        for index in members:
            effects[:, index] = numbers(task.per_prompt(_of_cell(products, cells[index])))
    return effects


def _last_only(cells: Sequence[Cell]) -> bool:
    return all(cell.positions == (-1,) for cell in cells)


def _of_cell(products: Tensor, cell: Cell) -> Float[Tensor, " row"]:
    """``products`` [prompt, pos] or [prompt, pos, head], summed over the cell."""
    own = products[:, cell.columns]
    own = own if cell.head is None else own[..., cell.head]
    return own.sum(1)


def _products(run: TargetRun, place: Place, gradient: Float[Tensor, "prompt pos *rest"]) -> Tensor:
    """(source - target) . gradient at every position (and head) that ``gradient`` has; the last ones."""
    source, own = _values(run, place, gradient.shape[1])
    if place[0] != "write":
        return ((source - own) * gradient).sum(-1)
    theirs, ours = run.matrices_of(place[1])
    by_theirs = torch.einsum("bpd,hkd->bphk", gradient, theirs)
    by_ours = torch.einsum("bpd,hkd->bphk", gradient, ours)
    return (source * by_theirs - own * by_ours).sum(-1)


def _values(run: TargetRun, place: Place, width: int) -> tuple[Tensor, Tensor]:
    """The source's and the target's value (z for heads) at the last ``width`` positions."""
    own = run.values[site_of(place)][:, -width:]
    return run.source[site_of(place)][:, -width:].to(own), own


def _mean_gradient(
    runs: Recorded, batch: Prepared, place: Place, cells: Sequence[Cell], steps: int
) -> Float[Tensor, "prompt pos *rest"]:
    """The gradient at one place, averaged over points between target and source; the points run as copies."""
    run, (kind, layer) = batch.run, place
    last_only = _last_only(cells)
    run.shortcuts = runs.exact(run, last_only=last_only)
    leaves = Leaves([place], _between(run, place, cells, steps))
    with frozen(run.model.hf):
        logits = run.replay(
            steps, leaves.hooks, layer, last_only=last_only, known_z=kind != "resid_pre", grad=True
        )  # fmt: skip
        # The copies of a prompt do not touch each other, so one backward pass of the sum serves them all.
        gradient = leaves.gradients(batch.metric(logits).sum())[place]
    run.backward += run.share(steps, layer, last_only=last_only)
    return gradient.unflatten(0, (-1, steps)).mean(1)


def _between(run: TargetRun, place: Place, cells: Sequence[Cell], steps: int) -> Move:
    """Each copy a point of the way to the source, at the patched positions."""

    def move(value: Tensor) -> Tensor:
        shift = _shift(run, place, value.shape[1])
        points = (torch.arange(steps, device=value.device, dtype=value.dtype) + 0.5) / steps
        reached = torch.zeros(value.shape[1], device=value.device, dtype=value.dtype)
        for cell in cells:
            reached[cell.columns] = 1
        shift = shift * reached.view(-1, *[1] * (shift.ndim - 2))
        way = points.view(-1, *[1] * (shift.ndim - 1)) * shift[:, None].to(value)
        return (value.unflatten(0, (-1, steps)) + way).flatten(0, 1)

    return move


def _shift(run: TargetRun, place: Place, width: int) -> Tensor:
    """Source minus target at the site; for writes, summed over the heads."""
    source, own = _values(run, place, width)
    if place[0] != "write":
        return source - own
    theirs, ours = run.matrices_of(place[1])
    return torch.einsum("bphk,hkd->bpd", source, theirs) - torch.einsum("bphk,hkd->bpd", own, ours)
