"""shared_part: how far a task's LoRA overlaps with the one that all tasks share (multi-task LoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from probes.anatomy.spaces import Svd
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.series.lora_sets import read_adapters, shared_modules
from probes.series.members import Members, members_of
from probes.weights.naming import place_of
from probes.weights.sources import Factors
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.stats.bootstrap import mean_interval


@dataclass(frozen=True, kw_only=True)
class SharedPart(ProbeResult):
    """One row per module: the overlap of the tasks' parts with the shared part.

    ``score``: share of the squared norm of a task's update that lies in the output space of the shared one, the mean
    over tasks, with its interval over them; ``control``: of random spaces of the same rank, ``q`` of a larger share;
    ``reads``: the same of the input spaces, ``reads_control``; ``cosine`` of the two updates; ``weight``: ||shared|| in
    ||shared + task||. ``tasks``: the same task by task.
    """

    tasks: pd.DataFrame

    title: ClassVar[str] = "Overlap of shared and task part"
    unit: ClassVar[str] = "share of the task part inside the shared output space"

    def summary(self) -> str:
        table = self.table
        return (
            f"{self.tasks['task'].nunique()} tasks, {len(table)} modules: {table['score'].mean():.2f} of a task's "
            f"update is written where the shared one writes (random spaces {table['control'].mean():.2f}), "
            f"{table['reads'].mean():.2f} read where it reads ({table['reads_control'].mean():.2f}); mean cosine "
            f"{table['cosine'].mean():.2f}. Control: {self.control}."
        )


@method(
    "shared-part",
    group="weights",
    question="Does each task's LoRA repeat what the shared one does, or add to it?",
    papers=("MTLoRA: A Low-Rank Adaptation Approach for Efficient Multi-Task Learning",),
    needs=Needs(folders=True, adapter=True),
    cost="one reading of the adapters and a decomposition per module, task and draw",
    example="--shared ./adapter",
)
def shared_part(
    base: Any,
    tuned: Any = None,
    *,
    shared: str = "",
    checkpoints: Sequence[str] = (),
    draws: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> SharedPart:
    """Project each task's update on the spaces that the shared LoRA writes to and reads from.

    The source is a vision model whose task-agnostic and task-specific LoRAs act side by side; carried over is the split
    of an update in a shared and a task part, stored as adapters of one base.

    Args:
        base: A pair, or the base.
        tuned: The LoRA of one task.
        shared: The folder of the LoRA that all tasks share.
        checkpoints: The LoRAs of the other tasks.
        draws: Random spaces.
        seed: Of the random spaces and the intervals.

    Raises:
        UserError: No shared part, what is no plain LoRA, or modules that they do not share.
    """
    if not shared:
        raise UserError("Name the part that all tasks share: shared= the folder of its LoRA.")
    members = members_of(base, tuned, checkpoints, None, fewest=1)
    every = Members(members.base, [shared, *members.models], ["shared", *members.names], [0.0, *members.scores])
    adapters, models = read_adapters(every, progress or Silent())
    rows, tasks = [], []
    for number, name in enumerate(shared_modules(adapters)):
        place = place_of(name)
        where = {"layer": place.layer, "module": place.module}
        own = [
            {**where, "task": title, **_overlap(adapters["shared"][name], adapters[title][name])}
            for title in members.names
        ]
        tasks += own
        rows.append(
            {**where, **_row(own, adapters["shared"][name], adapters[members.names[0]][name], draws, seed + number)}
        )
    return SharedPart(
        table=with_q(rows, keep_p=False),
        control=f"random spaces of the shared part's rank ({draws} draws)",
        provenance=Provenance.of("shared_part", models, seed=seed),
        tasks=pd.DataFrame(tasks),
    )  # fmt: skip


def _overlap(shared: Factors, task: Factors) -> dict[str, float]:
    common, own = (Svd.of_factors(factors.up.cpu(), factors.down.cpu()) for factors in (shared, task))
    both, alone = common.product(), own.product()
    size = alone.square().sum().clamp_min(1e-30)
    inner = float((both * alone).sum())
    return {
        "writes": float((common.left.T @ alone).square().sum() / size),
        "reads": float((alone @ common.right).square().sum() / size),
        "cosine": inner / max(float(both.norm() * alone.norm()), 1e-30),
        "weight": float(both.norm()) / max(float((both + alone).norm()), 1e-30),
    }


def _row(own: list[dict[str, Any]], shared: Factors, task: Factors, draws: int, seed: int) -> dict[str, float]:
    writes = np.array([part["writes"] for part in own])
    inside = mean_interval(writes, seed=seed) if len(writes) > 1 else None
    mean = float(writes.mean())
    generator = torch.Generator().manual_seed(seed)
    alone = Svd.of_factors(task.up.cpu(), task.down.cpu()).product()
    size = alone.square().sum().clamp_min(1e-30)
    rank = shared.down.shape[0]
    drawn = []
    for _ in range(draws):
        space = torch.linalg.qr(torch.randn(alone.shape[0], rank, generator=generator).to(alone)).Q
        drawn.append(float((space.T @ alone).square().sum() / size))
    return {
        "score": mean, "low": mean if inside is None else inside.low, "high": mean if inside is None else inside.high,
        "control": float(np.mean(drawn)) if drawn else np.nan,
        "p": (1 + sum(draw >= mean for draw in drawn)) / (draws + 1),
        "reads": float(np.mean([part["reads"] for part in own])), "reads_control": rank / alone.shape[1],
        "cosine": float(np.mean([part["cosine"] for part in own])),
        "weight": float(np.mean([part["weight"] for part in own])), "rank": rank, "n": len(own),
    }  # fmt: skip
