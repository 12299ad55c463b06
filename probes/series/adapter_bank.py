"""adapter_bank: every fine-tune of a bank on every task, which one a few shots pick, and what the pick costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.grafting.tasks import Task
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.series.answers import Answers, pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts

_FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class AdapterBank(ProbeResult):
    """One row per task (label of the prompts).

    ``member`` is the fine-tune that the task's shots pick (the most right answers, then the surest); ``score``: its
    share right of the task's other prompts, ``control``: the mean of all members (a member at random), ``q`` of the
    difference; ``best`` of any member on those prompts and ``regret`` = best - score; ``base`` of the base; ``rank`` of
    the picked member on the other prompts (1: the best).
    ``shares``: task, member, and share right on shots and on the others: the confusion matrix of a selector.
    ``likeness``: cosine of every two members' updates.
    """

    shares: pd.DataFrame
    likeness: pd.DataFrame

    title: ClassVar[str] = "A bank of fine-tunes"
    unit: ClassVar[str] = "share right with the picked fine-tune"

    def figure(self) -> go.Figure:
        """Per task, the picked member beside a random one."""
        named = self.table.assign(label=self.table["module"] + ": " + self.table["member"])
        return labelled_points(named, "label", title=self.title, unit=self.unit)

    def summary(self) -> str:
        table = self.table
        picks = ", ".join(f"{row['module']} -> {row['member']}" for _, row in table.iterrows())
        return (
            f"{picks}; picked {table['score'].mean():.2f}, random member {table['control'].mean():.2f}, mean regret "
            f"{table['regret'].mean():.2f}; mean cosine of two updates {self.likeness['cosine'].mean():.2f}. "
            f"Control: {self.control}."
        )


@method(
    "adapter-bank",
    group="weights",
    question="Which fine-tune of a bank serves each task, and does a selection by a few shots find it?",
    papers=(
        "Leveraging Open Knowledge for Advancing Task Expertise in Large Language Models",
        "ConPET: Continual Parameter-Efficient Tuning for Large Language Models",
        "What to Pre-Train on? Efficient Intermediate Task Selection",
    ),
    needs=Needs(columns=("answer", "label")),
    cost="a forward pass per prompt and member",
    example="--checkpoints ./adapter",
)
def adapter_bank(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    shots: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> AdapterBank:
    """Ask every member every task; ``shots`` prompts of a task (whole groups) pick, the others report.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer, and a label that names their task.
        checkpoints: The other members: folders or hub ids.
        shots: Prompts of each task that pick, at most half of them.
        seed: Of the split and the intervals.

    Raises:
        UserError: Fewer than two members, no labels, or too few prompts of a task.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
    answers = Answers.of(pair.base, rows, batch_size)
    labels = task_labels(rows, answers)
    watch = progress or Silent()
    watch.start("bank", len(vectors) + 1)
    tasks = {str(label): answers.task(np.flatnonzero(labels == label)) for label in dict.fromkeys(labels)}
    right: dict[str, dict[str, np.ndarray]] = {}
    sure: dict[str, dict[str, np.ndarray]] = {}
    for name, vector in tracked({"base": None, **vectors}.items(), watch):
        outcomes = {label: answers.outcome(task, vector) for label, task in tasks.items()}
        right[name] = {label: outcome.right.astype(float) for label, outcome in outcomes.items()}
        sure[name] = {
            label: np.where(outcome.right, outcome.confidence, -outcome.confidence)
            for label, outcome in outcomes.items()
        }
    watch.finish()
    table, shares = [], []
    for label, task in tasks.items():
        row, cells = _picked(label, task, right, sure, list(vectors), shots, seed)
        table.append(row)
        shares += cells
    pairs = [(first, other) for place, first in enumerate(vectors) for other in list(vectors)[place + 1 :]]
    return AdapterBank(
        table=with_q(table, keep_p=False),
        control="a member of the bank at random, on the same prompts",
        provenance=Provenance.of(
            "adapter_bank", models, rows, seed=seed, device=str(pair.base.device), forward_passes=answers.passes,
        ),
        shares=pd.DataFrame(shares),
        likeness=pd.DataFrame([
            {"first": first, "second": other, "cosine": vectors[first].cosine(vectors[other])} for first, other in pairs
        ]),
    )  # fmt: skip


def task_labels(rows: Prompts, answers: Answers) -> np.ndarray:
    """The task of every usable row. Raises :class:`UserError` without labels."""
    if answers.rows.dropped:
        raise UserError(
            f"{answers.rows.dropped} prompts have answers that begin alike: give answers whose first tokens differ."
        )
    labels = [row.label for row in rows]
    if any(label is None for label in labels):
        raise UserError(f"Prompt {labels.index(None)} has no label: the column label names the task of every prompt.")
    texts = np.array([str(label) for label in labels])
    few = [name for name in dict.fromkeys(texts) if int((texts == name).sum()) < 2 * _FEWEST]
    if few:
        raise UserError(f"The task {few[0]!r} has fewer than {2 * _FEWEST} prompts: give more.")
    return texts


def _picked(
    label: str,
    task: Task,
    right: dict[str, dict[str, np.ndarray]],
    sure: dict[str, dict[str, np.ndarray]],
    names: list[str],
    shots: int,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    clusters = task.clusters if task.clusters is not None else np.arange(len(right["base"][label]))
    inside = _shots(clusters, shots, seed)
    by_shots = {name: tuple(float(values[name][label][inside].mean()) for values in (right, sure)) for name in names}
    member = max(names, key=lambda name: by_shots[name])
    others = np.stack([right[name][label][~inside] for name in names])
    own = right[member][label][~inside]
    means = others.mean(1)
    row = {
        "module": label, "member": member,
        **beside_control(own, others.mean(0), clusters[~inside], seed=seed, share=True),
        "best": float(means.max()), "regret": float(means.max() - own.mean()),
        "base": float(right["base"][label][~inside].mean()), "rank": int((means > own.mean()).sum()) + 1, "n": len(own),
    }  # fmt: skip
    cells = [
        {"task": label, "member": name, "shots": by_shots[name][0], "others": float(right[name][label][~inside].mean())}
        for name in names
    ]
    return row, cells


def _shots(clusters: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """True at the rows that pick: whole groups, about ``shots`` rows and at most half of them."""
    groups = np.random.default_rng(seed).permutation(np.unique(clusters))
    inside = np.zeros(len(clusters), dtype=bool)
    for group in groups:
        if inside.sum() + (clusters == group).sum() > min(shots, len(clusters) // 2):
            break
        inside |= clusters == group
    if not inside.any():
        inside = clusters == groups[0]
    return inside
