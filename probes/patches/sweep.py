"""Many patches over all prompts: the change of the metric, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from probes.patches.cells import Patch
from probes.patches.recorded import Prepared, Recorded, Share, numbers
from probes.patches.task import Task
from workbench import finished_batches
from workbench.finished_batches import fingerprint
from workbench.progress import Progress, Silent
from workbench.typing import Float

Group = tuple[list[int], np.ndarray]
"""Numbers of the patches that ran together, and what each did to the metric [prompt, patch] of a batch."""
MAX_ROWS = 512
"""Rows run together when each is a single token; their logits are held at once."""


@dataclass(frozen=True)
class Sweep:
    """What patches did."""

    effects: Float[np.ndarray, "prompt patch"]
    """Metric of the patched target run minus metric of the target run."""
    source: Float[np.ndarray, " prompt"]
    """Metric of the source run."""
    target: Float[np.ndarray, " prompt"]
    passes: float
    """Forward passes in units of one batch through one whole model."""
    exact_shortcuts: bool
    """False where replaying from the middle was not exact, so that every patch was a whole forward pass."""


def sweep(
    task: Task,
    patches: Sequence[Patch],
    metric: str,
    *,
    batch_size: int = 16,
    max_tokens: int | None = None,
    shortcuts: bool = True,
    progress: Progress | None = None,
    runs: Recorded | None = None,
) -> Sweep:
    """Patch the target run with each of ``patches``, one forward pass (or the part that can change) each.

    ``max_tokens``: how many tokens run together as copies (default 512 on a CPU, whose caches are small, else 16384).
    ``shortcuts=False`` runs whole forward passes. ``runs``: what earlier sweeps of this task recorded.
    """
    report = progress or Silent()
    if runs is None:
        runs = Recorded(task, [cell for patch in patches for cell in patch], metric, batch_size, keep=0)
    at_once = max_tokens or (512 if task.target.device.type == "cpu" else 16_384)
    effects = np.zeros((len(task.target_ids), len(patches)))
    before, exact, taken, bar = runs.passes, shortcuts, 0, _Bar(report)
    report.start("Patching", len(runs.members) * len(patches))

    def take(members: list[int], _share: Share, done: tuple[list[Group], bool]) -> None:
        nonlocal exact, taken
        groups, exact = done
        for group, moved in groups:
            effects[np.ix_(members, group)] = moved
            taken += len(group)
        if bar.done < taken:  # by another process, which has no bar
            bar.advance(taken - bar.done)

    work = partial(_patched, task, patches, at_once, shortcuts, bar)
    runs.spread(work, take, modes=_modes(patches) if shortcuts else (), divisible=fingerprint(patches))
    report.finish()
    return Sweep(effects, runs.source.copy(), runs.target.copy(), runs.passes - before, exact)


class _Bar(Silent):
    """Knows what it was told."""

    def __init__(self, report: Progress) -> None:
        self.report, self.done = report, 0

    def advance(self, by: int = 1) -> None:
        self.done += by
        self.report.advance(by)


def _patched(
    task: Task,
    patches: Sequence[Patch],
    at_once: int,
    shortcuts: bool,
    bar: Progress,
    runs: Recorded,
    batch: Prepared,
    share: Share,
) -> tuple[list[Group], bool]:
    """What this share of the patches does to a batch, and whether replays from the middle are exact."""
    exact = shortcuts and all([runs.exact(batch.run, last_only=last) for last in _modes(patches)])
    batch.run.shortcuts = exact
    groups, done = _groups(patches, batch.run.batch.input_ids.numel(), len(batch.members), at_once), []
    for group in groups[share[0] :: share[1]]:
        placed = [patches[index] for index in group]
        about = [runs.metric, exact, task.names, batch.members, batch.run.batch.input_ids, placed]
        moved, batch.run.passes = finished_batches.batch("patches", about, partial(_moved, task, batch, placed))
        done.append((group, moved))
        bar.advance(len(group))
    return done, exact


def _moved(task: Task, batch: Prepared, patches: Sequence[Patch]) -> tuple[Float[np.ndarray, "prompt patch"], float]:
    """What patches do to the metric of a batch, and the passes that it took so far."""
    logits = batch.run.patched(patches)
    # A patch that puts in what is there does nothing; replayed from the middle it would show rounding errors.
    moved = torch.stack([~batch.run.unmoved(patch) for patch in patches], dim=1)
    unmoved = task.per_prompt(moved.int()) == 0
    moves = numbers((batch.metric(logits) - batch.target[:, None]).masked_fill(unmoved, 0.0))
    return moves, batch.run.passes


def _modes(patches: Sequence[Patch]) -> set[bool]:
    return {_last_only(patch) for patch in patches}


def _last_only(patch: Patch) -> bool:
    return all(cell.positions == (-1,) for cell in patch)


def _groups(patches: Sequence[Patch], tokens: int, rows: int, max_tokens: int) -> list[list[int]]:
    """Patches that run together: same first layer, same positions mode, at most ``max_tokens`` tokens."""
    by_start: dict[tuple[int, bool], list[int]] = {}
    for index, patch in enumerate(patches):
        by_start.setdefault((min(cell.layer for cell in patch), _last_only(patch)), []).append(index)
    groups = []
    for (_, last_only), members in sorted(by_start.items()):
        width = max(1, min(max_tokens, MAX_ROWS) // rows if last_only else max_tokens // tokens)
        groups += [members[start : start + width] for start in range(0, len(members), width)]
    return groups
