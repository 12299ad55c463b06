"""twin_merge: what fine-tunes share plus compressed parts of their own, mixed by a router (Lu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from interventions.weightspace.merging import TwinMerge, twin_merging
from interventions.weightspace.task_vector import TaskVector
from probes.grafting.tasks import Task
from probes.halves import half_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.series.answers import Answers, pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.typing import Tensor


@dataclass(frozen=True, kw_only=True)
class TwinMergeTest(ProbeResult):
    """One row per way of mixing, on held-out prompts of all tasks.

    ``module``: "routed" (each input's update is the shared one and the part of the task that the router names), "mean"
    (the shared one alone), "oracle" (the router is always right). ``score``: share right,
    ``control``: with a router that draws tasks at random, ``q`` of the difference.
    ``routes``: label, task that the router named, and how many prompts: its confusion matrix. ``energy``: task, rank
    and the share of the squared norm of its own part that so many ranks hold.
    ``alone``: share right of each member by itself, over all tasks.
    """

    routes: pd.DataFrame
    energy: pd.DataFrame
    alone: dict[str, float]
    rank: int

    title: ClassVar[str] = "Twin merging"
    unit: ClassVar[str] = "share right over all tasks"

    @property
    def router_accuracy(self) -> float:
        """Share of held-out prompts whose task the router names."""
        right = self.routes[self.routes["label"] == self.routes["routed"]]["count"].sum()
        return float(right / self.routes["count"].sum())

    def summary(self) -> str:
        rows = {row["module"]: row for _, row in self.table.iterrows()}
        held = self.energy[self.energy["rank"] == self.rank]["share"].mean()
        return (
            f"Routed {rows['routed']['score']:.2f} [{rows['routed']['low']:.2f}, {rows['routed']['high']:.2f}], mean "
            f"{rows['mean']['score']:.2f}, oracle {rows['oracle']['score']:.2f}, best member alone "
            f"{max(self.alone.values()):.2f}; the router is right on {self.router_accuracy:.0%}; rank {self.rank} "
            f"holds {held:.0%} of a task's own part. Control: {self.control} ({rows['routed']['control']:.2f})."
        )


@method(
    "twin-merging",
    group="weights",
    question="Do a shared update, small parts of each task and a router serve every task at once?",
    papers=("Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging",),
    needs=Needs(columns=("answer", "label")),
    cost="a forward pass per prompt and member, a decomposition of every tensor per member",
    example="--checkpoints ./adapter",
)
def twin_merge(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    tasks: Sequence[str] = (),
    rank: int = 8,
    layer: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> TwinMergeTest:
    """Merge ``checkpoints`` and the tuned model, fit the router on half of the prompts, judge on the other half.

    The router is a logistic regression on the base's residual at the last token.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer, and a label that names their task.
        checkpoints: The other fine-tunes: folders or hub ids.
        tasks: The label of each member, the tuned model's last; by default the labels in order of appearance.
        rank: Rank of each task's own part.
        layer: Layer whose residual the router reads; the middle one by default.
        seed: Of the split, the random router and the intervals.

    Raises:
        UserError: As many labels as members are needed; prompts without answers or too few.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
    answers = Answers.of(pair.base, rows, batch_size)
    labels, names = _tasks(rows, answers, list(tasks), list(vectors))
    merged = twin_merging(list(vectors.values()), rank)
    place = pair.base.n_layers // 2 if layer is None else layer
    features = _features(pair.base, answers.task(), place)[np.argsort(_order(answers))]
    fit, report = _halves(labels, answers.rows.clusters, seed)
    routed = _routed(features[fit], labels[fit], features[report], len(names))
    watch = progress or Silent()
    watch.start("twin merging", 2 * len(names) + 1)
    bench = _Bench(answers, report, labels[report], merged, watch, seed)
    table, alone = bench.table(routed), bench.alone(vectors)
    watch.finish()
    counts = pd.DataFrame({"label": [names[n] for n in labels[report]], "routed": [names[n] for n in routed]})
    return TwinMergeTest(
        table=with_q(table, keep_p=False),
        control="the same parts under a router that draws tasks at random",
        provenance=Provenance.of(
            "twin_merge", models, rows, seed=seed, device=str(pair.base.device), forward_passes=answers.passes,
        ),
        routes=counts.value_counts().rename("count").reset_index(),
        energy=_energy(vectors, names, rank),
        alone=alone,
        rank=rank,
    )  # fmt: skip


def _tasks(rows: Prompts, answers: Answers, tasks: list[str], members: list[str]) -> tuple[np.ndarray, list[str]]:
    """The number of each row's task, and the tasks' names in the order of the members."""
    if answers.rows.dropped:
        raise UserError(f"{answers.rows.dropped} prompts have answers that begin alike: give answers that begin apart.")
    labels = [None if row.label is None else str(row.label) for row in rows]
    if None in labels:
        raise UserError(f"Prompt {labels.index(None)} has no label: the column label names the task of every prompt.")
    names = tasks or [str(label) for label in dict.fromkeys(labels)]
    if len(names) != len(members) or set(labels) != set(names):
        raise UserError(
            f"The prompts have the labels {', '.join(sorted({str(label) for label in labels}))}, and there are "
            f"{len(members)} members ({', '.join(members)}): name the label of each member with tasks."
        )
    return np.array([names.index(str(label)) for label in labels]), names


@torch.no_grad()
def _features(base: AdaptedModel, task: Task, layer: int) -> np.ndarray:
    """The residual after ``layer`` at each row's last token, in the order of the rows of the task."""
    parts: list[Tensor] = []

    def read(value: Tensor, ctx: ForwardContext) -> None:  # noqa: ARG001
        parts.append(value[:, -1].detach().float().cpu())

    with base.hooked([SiteHook(Site("resid_post", layer), read)]):
        for encoded, _, _ in task.batches:
            base.forward(encoded, logits=None)
    return torch.cat(parts).numpy()


def _order(answers: Answers) -> np.ndarray:
    """The rows in the order of the task's batches, which are of similar length."""
    from workbench.prompts.encode import batches

    lengths = [len(ids) for ids in answers.rows.ids]
    return np.array([row for rows in batches(lengths, answers.batch_size) for row in rows])


def _halves(labels: np.ndarray, clusters: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    inside = half_of(clusters, seed)
    if len(np.unique(labels[inside])) < len(np.unique(labels)) or not (~inside).any():
        raise UserError("Half of the prompts do not hold every task: give more prompts of each.")
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _routed(seen: np.ndarray, labels: np.ndarray, new: np.ndarray, count: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert count > 1
    router = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen, labels)
    return np.asarray(router.predict(new))


@dataclass
class _Bench:
    answers: Answers
    report: np.ndarray
    labels: np.ndarray
    merged: TwinMerge
    watch: Progress
    seed: int

    def right(self, vector: TaskVector) -> np.ndarray:
        """Of the reporting rows, in their order."""
        right = self.answers.outcome(self.answers.task(), vector).right.astype(float)
        self.watch.advance()
        return right[np.argsort(_order(self.answers))][self.report]

    def table(self, routed: np.ndarray) -> pd.DataFrame:
        count = len(self.merged.exclusive)
        own = np.stack([self.right(self.merged.routed(list(np.eye(count)[place]))) for place in range(count)])
        rows = np.arange(len(routed))
        drawn = np.random.default_rng(self.seed).integers(0, count, (20, len(routed)))
        random = np.mean([own[draw, rows] for draw in drawn], 0)
        ways = {"routed": own[routed, rows], "oracle": own[self.labels, rows], "mean": self.right(self.merged.shared)}
        clusters = self.answers.rows.clusters[self.report]
        return pd.DataFrame([
            {
                "module": name, **beside_control(right, random, clusters, seed=self.seed, share=True), "n": len(right),
            }
            for name, right in ways.items()
        ])  # fmt: skip

    def alone(self, vectors: dict[str, TaskVector]) -> dict[str, float]:
        return {name: float(self.right(vector).mean()) for name, vector in vectors.items()}


def _energy(vectors: dict[str, TaskVector], names: list[str], rank: int) -> pd.DataFrame:
    """Share of the squared norm of each task's own part that so many ranks of every matrix hold."""
    from interventions.weightspace.merging import uniform_soup

    shared = uniform_soup(list(vectors.values()))
    rows = []
    for task, vector in zip(names, vectors.values(), strict=True):
        beyond = vector - shared
        squares: dict[int, float] = {}
        total = 0.0
        for name in beyond.changes:
            change = beyond.changes[name].float()
            values = (
                torch.linalg.svdvals(change.reshape(len(change), -1)).square() if change.ndim else change.reshape(1)
            )
            total += float(values.sum())
            for ranks in sorted({1, 2, 4, 8, 16, 32, 64, rank}):
                squares[ranks] = squares.get(ranks, 0.0) + float(values[:ranks].sum())
        rows += [{"task": task, "rank": r, "share": value / max(total, 1e-30)} for r, value in squares.items()]
    return pd.DataFrame(rows)
