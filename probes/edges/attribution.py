"""``edge_attribution``: which edges of base and tuned model carry a task, and which exist in one of them alone.

Edge attribution patching with integrated gradients (Hanna et al. 2024), on both models of a pair with the same prompts
and contrasts, judged as the MIB benchmark's circuit track judges circuits (Mueller et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.edges.curves import areas_of, curve_of, rebuilt
from probes.edges.graph import Graph
from probes.edges.scoring import EdgeScores, edge_scores, exact_scores
from probes.patches.task import Task, check_lengths, make_task
from probes.paths.groups import sides_of
from probes.resampling import cluster_means
from probes.results import ProbeResult, Provenance
from workbench.errors import UserError, unknown_name
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.prompts import Prompts
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Int

FOUND, BOOTSTRAPS = 100, 50
"""How many of the largest edges (a tenth of all at most) are sought again, in so many bootstraps of the prompts."""


@dataclass(frozen=True, kw_only=True)
class EdgeAttribution(ProbeResult):
    """Edges of one model, or of both.

    ``table``: ``module`` ("L0H1 -> L2H3.q"), ``layer`` (the receiver's), sender, receiver; ``score``: tuned - base (of
    one model: its own), how much of the metric the edge carries, with its interval over groups of prompts; ``control``:
    the same with what the sender said on other prompts; ``base``, ``tuned``; ``present``: in which of them the edge
    carries at least ``least`` of the largest gap with q <= .05 ("both", "base", "tuned", "-"; of one model its role);
    ``found_again``: the share of bootstraps of the groups in which it is among the largest (:data:`FOUND`).
    """

    gaps: dict[str, float]
    """Model -> metric on the prompts less that on their contrasts."""
    edges: int
    """How many edges were scored; the table keeps the largest."""
    stability: float = float("nan")
    """The mean share of the largest edges (:data:`FOUND`) that a bootstrap of the prompts finds again."""
    stability_by_chance: float = float("nan")
    """The same of edges in a random order."""
    curve: pd.DataFrame | None = None
    """model (base, tuned, or change: the tuned model's values put into the base), method, share, edges, faithfulness
    with low and high."""
    areas: pd.DataFrame | None = None
    """model, method, cpr and cmd with their intervals over prompts."""

    title: ClassVar[str] = "Edges"
    unit: ClassVar[str] = "metric carried by the edge"

    def only_in(self, model: Literal["base", "tuned"]) -> list[str]:
        """The edges that are present in ``model`` alone, largest first."""
        rows = self.table[self.table["present"] == model]
        order = rows["score"].abs().sort_values(ascending=False).index
        return [str(name) for name in rows.loc[order, "module"]]

    def summary(self) -> str:
        counts = self.table["present"].value_counts()
        top = self.table.iloc[int(self.table["score"].abs().to_numpy().argmax())]
        named = {"both": "in both", "base": "in the base alone", "tuned": "in the tuned model alone"}
        if len(self.gaps) == 1:
            named = {next(iter(self.gaps)): "of which carry the task"}
        said = ", ".join(f"{counts.get(name, 0)} {text}" for name, text in named.items())
        again = "" if np.isnan(self.stability) else (
            f"; {self.stability:.0%} of the largest {sought(self.edges)} are found again in bootstraps of the prompts "
            f"(by chance {self.stability_by_chance:.1%})"
        )  # fmt: skip
        return (
            f"{self.edges} edges, {said}; largest {'change' if len(self.gaps) > 1 else 'score'}: {top['module']} "
            f"{top['score']:+.3g} [{top['low']:.3g}, {top['high']:.3g}], control {top['control']:.2g}{again}"
        )

    def figure(self) -> go.Figure:
        """Faithfulness against the share of edges, or, where no curve was asked for, the largest edges."""
        from workbench.figures.edges import edge_bars, faithfulness_curve

        if self.curve is None:
            return edge_bars(self.table.head(30), title=self.title)
        return faithfulness_curve(self.curve, title="Faithfulness of the best edges")


@method(
    "edges",
    group="paths",
    question="Which edges between components carry the task, and which are new in the tuned model?",
    needs=Needs(columns=("answer", "distractor", "contrast")),
    cost="per model and batch: steps forward and backward passes (exact: two forward passes per edge)",
    example="--steps 5",
)
def edge_attribution(  # noqa: PLR0913 (a public call; all but two by keyword)
    subject: Any,
    prompts: Any,
    *,
    method: Literal["ig", "exact"] = "ig",
    steps: int = 5,
    curve: bool = False,
    kept: int = 500,
    least: Annotated[float, Within(0, 1)] = 0.02,
    controls: int = 3,
    batch_size: int = 8,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> EdgeAttribution:
    """Score every edge between each prompt and its contrast, by integrated gradients; the metric is logit_diff.

    ``subject``: a model, or a pair, both models of which read the same prompts. Edges go from the embedding, heads and
    MLPs to the q, k and v of later heads, to later MLPs and to the logits. An edge's score estimates how much of
    answer minus distractor is lost when its receiver is fed what the sender writes on the contrast. Example::

        found = probes.edge_attribution(pair, prompts, curve=True)
        found.only_in("tuned"), found.areas

    Gradients see nothing behind a unit that is saturated along the whole line (Tracr's programs are full of them);
    ``method="exact"`` patches every edge by itself instead, with two forward passes per edge.

    Args:
        method: ig, by gradients; or exact, edge by edge, for small models.
        steps: Points of the straight line between the two inputs' embeddings; 1 is edge attribution patching.
        curve: Whether to run circuits of the best edges exactly: faithfulness, CPR and CMD of each model, and of the
            change (the base fed by the tuned model along the best edges), beside random edges.
        kept: Edges that the table keeps, the largest in either model.
        least: The share of the largest gap (mean size over prompts) from which an edge counts as present.
        controls: Random rankings beside the curve.

    Raises:
        UserError: Contrasts are missing or of another length, or no model's metric differs between them.
        NotSupported: The models' blocks are not norm, attention, norm, MLP in turn.
    """
    models = sides_of(subject)
    rows = Prompts.of(prompts)
    tasks = {name: make_task(model, rows, "corrupted", "clean") for name, model in models.items()}
    if method not in ("ig", "exact"):
        raise unknown_name("method of edge_attribution", method, ("ig", "exact"))
    _check(next(iter(tasks.values())))
    graphs = {name: Graph(model) for name, model in models.items()}
    bar = progress or Silent()
    bar.start("edges", len(rows) * len(models))
    scored = {
        name: exact_scores(graphs[name], tasks[name], batch_size, bar)
        if method == "exact"
        else edge_scores(graphs[name], tasks[name], steps, batch_size, bar)
        for name in models
    }
    bar.finish()
    gaps = {name: float(scores.gap.mean()) for name, scores in scored.items()}
    size = max(float(np.abs(own.gap).mean()) for own in scored.values())
    if size < 1e-9:
        raise UserError(
            "Answer minus distractor is the same on every prompt and its contrast, so there is nothing to trace: give "
            "contrasts that change the answer."
        )
    clusters = next(iter(tasks.values())).prompts.clusters
    table = _table(graphs, scored, clusters, least * size, kept, draws, seed)
    edges = int(next(iter(graphs.values())).possible.sum())
    lines = None if not curve else [
        curve_of(graphs[name], tasks[name], scored[name].mean, name, batch_size, controls, seed) for name in models
    ]  # fmt: skip
    if lines is not None and len(models) == 2:
        lines.append(rebuilt(graphs, tasks["tuned"], batch_size, controls, seed))
    lines = None if lines is None else [line for line in lines if line.has_ends]
    return EdgeAttribution(
        table=table,
        control="what the sender wrote on other prompts, at the same place",
        provenance=Provenance.of(
            "edge_attribution", models, rows, seed=seed, device=str(next(iter(models.values())).device),
            forward_passes=sum(own.passes for own in scored.values()),
            backward_passes=sum(own.backward for own in scored.values()),
        ),
        gaps=gaps,
        edges=edges,
        stability=float(table["found_again"].head(sought(edges)).mean()),
        stability_by_chance=sought(edges) / edges,
        curve=None if lines is None else pd.concat([line.table(seed, draws) for line in lines], ignore_index=True),
        areas=None if lines is None else pd.concat([areas_of(line, seed, draws) for line in lines], ignore_index=True),
    )  # fmt: skip


def _check(task: Task) -> None:
    check_lengths(task, from_the_end=False)
    if task.answers is None or task.distractors is None:
        raise UserError("Edges are scored by answer minus distractor: give every prompt both columns.")


def _table(
    graphs: dict[str, Graph], scored: dict[str, EdgeScores], clusters: Int[np.ndarray, " prompt"], least: float,
    n_edges: int, draws: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """One row per edge; intervals and tests over groups of prompts."""
    graph = next(iter(graphs.values()))
    senders, receivers = np.nonzero(graph.possible)
    values = {name: scores.by_prompt[:, senders, receivers] for name, scores in scored.items()}
    top = np.argsort(-largest_of(values), kind="stable")[:n_edges]
    change = values["tuned"] - values["base"] if len(values) == 2 else next(iter(values.values()))
    intervals = mean_intervals(change[:, top], clusters=clusters, draws=draws, seed=seed)
    by_group = {name: cluster_means(value, clusters) for name, value in values.items()}
    control = next(iter(reversed(list(scored.values())))).control[senders, receivers][top]
    present = _present(by_group, least, top, draws, seed)
    lines: dict[str, Any] = {
        "layer": [graph.receivers[receivers[place]].layer for place in top],
        "module": [f"{graph.senders[senders[at]].label} -> {graph.receivers[receivers[at]].label}" for at in top],
        "sender": [graph.senders[senders[place]].label for place in top],
        "receiver": [graph.receivers[receivers[place]].label for place in top],
        "score": intervals.estimate, "low": intervals.low, "high": intervals.high, "control": control,
        "q": _q(cluster_means(change, clusters), draws, seed)[top], "present": present,
        "found_again": found_again(by_group, seed)[top],
        **{name: value.mean(0)[top] for name, value in values.items()},
    }  # fmt: skip
    return pd.DataFrame(lines)


def sought(edges: int) -> int:
    """How many of the largest edges are sought again: :data:`FOUND`, a tenth of all at most."""
    return max(1, min(FOUND, edges // 10))


def largest_of(values: dict[str, Float[np.ndarray, "group edge"]]) -> Float[np.ndarray, " edge"]:
    """The size of each edge's mean score, in the model where it is larger."""
    return np.asarray(np.max([np.abs(value.mean(0)) for value in values.values()], axis=0), dtype=float)


def found_again(values: dict[str, Float[np.ndarray, "group edge"]], seed: int) -> Float[np.ndarray, " edge"]:
    """Per edge, the share of bootstraps of the groups of prompts in which it is among the largest (:func:`sought`).

    Example:
        ``found_again({"model": np.ones((8, 1))}, 0)`` is ``[1.]``: an edge alone is found again in every bootstrap.
    """
    draw = np.random.default_rng(seed)
    groups, edges = next(iter(values.values())).shape
    count = sought(edges)
    hits = np.zeros(edges)
    for _ in range(BOOTSTRAPS):
        drawn = draw.integers(groups, size=groups)
        size = largest_of({name: value[drawn] for name, value in values.items()})
        hits[np.argpartition(-size, count - 1)[:count]] += 1
    return hits / BOOTSTRAPS


def _q(values: Float[np.ndarray, "group edge"], draws: int, seed: int) -> np.ndarray:
    return q_values(paired_permutation(values, draws=max(draws, 999), seed=seed).p)


def _present(values: dict[str, np.ndarray], least: float, top: np.ndarray, draws: int, seed: int) -> list[str]:
    there = {
        name: (_q(value, draws, seed) <= 0.05) & (np.abs(value.mean(0)) >= least) for name, value in values.items()
    }
    names = list(there)
    said = []
    for edge in top:
        inside = [name for name in names if there[name][edge]]
        said.append("both" if len(inside) == 2 else inside[0] if inside else "-")
    return said
