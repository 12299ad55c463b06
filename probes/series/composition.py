"""Sparse updates put together: what two share, where they disagree, and what one costs the other, over sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from interventions.weightspace.merging import trimmed
from interventions.weightspace.task_vector import TaskVector, combined
from probes.results import ProbeResult, Provenance
from probes.scored import paired_p, scored, with_q
from probes.series.answers import Answers, pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, kw_only=True)
class SparseComposition(ProbeResult):
    """A line per density of two sparse updates and their sum.

    ``table``: ``module`` names the density; ``score`` is the interference: right answers of the sum minus those of the
    better of the two alone, over prompts, ``control`` the same for the second update under random signs, ``q`` of the
    difference to 0; ``composed``, ``first``, ``second`` are shares of right answers; ``iou`` of the two sets of
    entries beside ``iou_chance`` (as many in every tensor at random); ``conflict``: the part of the shared entries
    whose signs differ (chance: 0.5).
    """

    title: ClassVar[str] = "Two sparse updates together"
    unit: ClassVar[str] = "right answers of the sum minus the better one's"

    def summary(self) -> str:
        worst = self.table.sort_values("score", kind="stable").iloc[0]
        return (
            f"{len(self.table)} densities; most interference at {worst['module']}: {worst['score']:.3f} "
            f"[{worst['low']:.3f}, {worst['high']:.3f}], control {worst['control']:.3f}; shared entries IoU "
            f"{worst['iou']:.3f} (chance {worst['iou_chance']:.3f}), {worst['conflict']:.2f} of them with opposite "
            f"signs. Control: {self.control}."
        )


@method(
    "composition",
    group="weights",
    question="Can two sparse updates be added, and where do they get in each other's way?",
    papers=(
        "Composable Sparse Fine-Tuning for Cross-Lingual Transfer",
        "Scaling Sparse Fine-Tuning to Large Language Models",
    ),
    needs=Needs(columns=("answer",)),
    cost="four forward passes per density",
    example="--checkpoints ./adapter",
)
def sparse_composition(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    densities: Sequence[float] = (0.01, 0.1, 1.0),
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> SparseComposition:
    """Add the largest entries of the tuned model's update and of one other's, at several densities.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer, of both skills.
        checkpoints: The other fine-tune: one folder or hub id.
        densities: Shares of each tensor's entries that are taken of each update.
        seed: Of the control's signs.

    Raises:
        UserError: Not exactly two fine-tunes, densities out of range, prompts without answers or too few.
    """
    check_pair(pair)
    if odd := [density for density in densities if not 0 < density <= 1]:
        raise UserError(f"A density is a share of entries, above 0 and at most 1; got {odd[0]:g}.")
    rows = Prompts.of(prompts)
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
    if len(vectors) != 2:
        raise UserError(
            f"Two updates are added, and {len(vectors)} were named: give one checkpoint and the tuned model."
        )
    answers = Answers.of(pair.base, rows, batch_size)
    watch = progress or Silent()
    watch.start("composition", len(densities))
    table = []
    for density in tracked(densities, watch):
        thin = [thinned(vector, density) for vector in vectors.values()]
        table.append(
            {"module": f"{density:g}", "density": density, **_row(answers, thin, seed), **shared_entries(*thin)}
        )
    watch.finish()
    return SparseComposition(
        table=with_q(table, keep_p=False),
        control="the second update with the same entries under random signs",
        provenance=Provenance.of(
            "sparse_composition", models, rows, seed=seed, device=str(pair.base.device), forward_passes=answers.passes,
        ),
    )  # fmt: skip


def thinned(vector: TaskVector, density: float) -> TaskVector:
    """The largest entries of every tensor of the update: ``density`` of them."""
    return combined([vector], lambda _, changes: trimmed(changes[0], density))


def _row(answers: Answers, thin: list[TaskVector], seed: int) -> dict[str, float]:
    task = answers.task()
    clusters = task.clusters if task.clusters is not None else np.arange(len(answers.rows.ids))
    first, second, both, shuffled = (
        answers.outcome(task, vector).right.astype(float)
        for vector in (thin[0], thin[1], thin[0] + thin[1], thin[0] + thin[1].sign_shuffled(seed))
    )
    better = first if first.mean() >= second.mean() else second
    apart = both - better
    return {
        **scored(apart, seed=seed, clusters=clusters),
        "control": float((shuffled - better).mean()),
        "p": paired_p(apart, clusters, seed=seed),
        "composed": float(both.mean()),
        "first": float(first.mean()),
        "second": float(second.mean()),
        "n": len(both),
    }


def shared_entries(first_vector: TaskVector, other: TaskVector) -> dict[str, float]:
    """How much the two sets of entries share, and how often signs differ there."""
    shared = either = opposed = 0
    expected = 0.0
    for name in dict.fromkeys([*first_vector.changes, *other.changes]):
        changes = [vector.changes[name] if name in vector.changes else None for vector in (first_vector, other)]
        counts = [0 if change is None else int((change != 0).sum()) for change in changes]
        first, second = changes
        if first is None or second is None:
            either += sum(counts)
            continue
        common = (first != 0) & (second != 0)
        shared += int(common.sum())
        either += sum(counts) - int(common.sum())
        opposed += int((common & (first.sign() != second.sign())).sum())
        expected += counts[0] * counts[1] / first.numel()
    union = either + shared - expected
    return {
        "iou": shared / either if either else 0.0,
        "iou_chance": expected / union if union > 0 else 0.0,
        "conflict": opposed / shared if shared else np.nan,
    }
