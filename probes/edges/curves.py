"""Circuits of the best edges run exactly: faithfulness by the share of edges, its areas, and random edges beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.edges.faithfulness import SHARES, area, faithfulness, leading
from probes.edges.gradients import mean_gradients
from probes.edges.graph import Graph
from probes.edges.scoring import metric_of
from probes.edges.sending import EdgeRun, sent
from probes.patches.task import Task
from workbench.prompts.encode import Encoded, batches
from workbench.stats.bootstrap import statistic_interval
from workbench.typing import Float, Int


@dataclass(frozen=True)
class Curve:
    """``metrics``: ranking -> [share, group], the metric of its circuits, summed over the prompts of each group;
    ``empty`` and ``whole`` [group]."""

    model: str
    metrics: dict[str, Float[np.ndarray, "share group"]]
    empty: Float[np.ndarray, " group"]
    whole: Float[np.ndarray, " group"]
    edges: list[int]

    @property
    def has_ends(self) -> bool:
        """Whether the metric differs between the empty and the whole circuit, so that faithfulness is defined."""
        return bool((self.whole != self.empty).any())

    def f(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Faithfulness [draw, share] of metrics [share, group] under weights [draw, group]."""
        empty, whole = weights @ self.empty, weights @ self.whole
        return faithfulness(weights @ values.T, empty[:, None], whole[:, None])

    def table(self, seed: int, draws: int) -> pd.DataFrame:
        """One row per ranking and share."""
        lines = []
        for method, values in self.metrics.items():
            for place, share in enumerate(SHARES):
                own = statistic_interval(lambda w, v=values[place : place + 1]: self.f(v, w)[:, 0], len(self.empty),  # type: ignore[misc]
                                         seed=seed, draws=draws, method="percentile")  # fmt: skip
                lines.append({"model": self.model, "method": method, "share": share, "edges": self.edges[place],
                              "faithfulness": own.estimate, "low": own.low, "high": own.high})  # fmt: skip
        return pd.DataFrame(lines)


def areas_of(curve: Curve, seed: int, draws: int) -> pd.DataFrame:
    """CPR and CMD of each ranking, with intervals over groups of prompts; curves begin at the empty circuit, f = 0."""
    lines = []
    for method, values in curve.metrics.items():
        line: dict[str, Any] = {"model": curve.model, "method": method}
        for name in ("cpr", "cmd"):
            interval = statistic_interval(
                lambda w, v=values, d=name == "cmd": area(curve.f(v, w), distance=d),  # type: ignore[misc]
                len(curve.empty), seed=seed, draws=draws, method="percentile",
            )  # fmt: skip
            line |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        lines.append(line)
    return pd.DataFrame(lines)


def rankings(scores: np.ndarray, controls: int, seed: int) -> dict[str, np.ndarray]:
    """By signed score (for CPR), by size (for CMD), and at random."""
    rankings = {"signed": scores, "size": np.abs(scores)}
    for number in range(controls):
        rankings[f"random {number + 1}"] = np.random.default_rng((seed, number)).random(scores.shape)
    return rankings


def curve_of(
    graph: Graph, task: Task, scores: np.ndarray, name: str, batch_size: int, controls: int, seed: int
) -> Curve:
    """Edges outside the circuit carry what their sender writes on the contrast."""

    def both_ends(corrupted: Encoded, clean: Encoded) -> _Ends:
        other, empty = sent(graph, corrupted)
        run = EdgeRun(graph, other)
        return _Ends(run, empty, run(clean, None))

    return _curve(
        name, graph, task, rankings(scores, controls, seed), batch_size, both_ends,
        lambda inside: graph.possible & ~inside,
    )  # fmt: skip


def rebuilt(graphs: dict[str, Graph], task: Task, batch_size: int, controls: int, seed: int) -> Curve:
    """The base's run in which the best edges carry what the tuned model's sender writes on the same prompt: how many
    edges it takes to rebuild what tuning changed. Edges are ranked by (tuned - base) . the mean of both gradients."""
    base, tuned = graphs["base"], graphs["tuned"]
    scores = np.zeros(base.possible.shape)
    for members in batches(task.lengths, batch_size):
        _, clean = task.batch(members)
        metric = metric_of(task, members)
        (there, _), (other, _) = sent(base, clean), sent(tuned, clean)
        gradients = sum(mean_gradients(graph, clean, (ends[0], ends[0]), metric, 1)
                        for graph, ends in ((base, there), (tuned, other)))  # fmt: skip
        scores += torch.einsum("sbpm,rbpm->sr", (other - there).float(), gradients.float()).double().cpu().numpy() / 2  # type: ignore[union-attr]

    def both_ends(_corrupted: Encoded, clean: Encoded) -> _Ends:
        other, whole = sent(tuned, clean)
        run = EdgeRun(base, other)
        return _Ends(run, run(clean, None), whole)

    return _curve("change", base, task, rankings(scores, controls, seed), batch_size, both_ends, lambda inside: inside)


@dataclass(frozen=True)
class _Ends:
    """A batch whose edges can carry another run's writes, and the logits of the curve's two ends."""

    run: EdgeRun
    empty: torch.Tensor
    whole: torch.Tensor


def _curve(
    name: str, graph: Graph, task: Task, ranked: dict[str, np.ndarray], batch_size: int,
    both_ends: Callable[[Encoded, Encoded], _Ends], carried: Callable[[np.ndarray], np.ndarray],
) -> Curve:  # fmt: skip
    """The metric at every share of the ranked edges; ``carried`` are the edges that carry the other run's writes when
    the leading ones are given."""
    n = len(task.target_ids)
    metrics = {method: np.zeros((len(SHARES), n)) for method in ranked}
    empty, whole = np.zeros(n), np.zeros(n)
    for members in batches(task.lengths, batch_size):
        corrupted, clean = task.batch(members)
        metric, ends = metric_of(task, members), both_ends(corrupted, clean)
        empty[members], whole[members] = _number(metric, ends.empty), _number(metric, ends.whole)
        for method, values in ranked.items():
            for place, share in enumerate(SHARES):
                leaders = leading(values, graph.possible, share)
                metrics[method][place, members] = _number(metric, ends.run(clean, carried(leaders)))
    groups = np.unique(task.prompts.clusters, return_inverse=True)[1]
    sums = {method: _summed(values, groups) for method, values in metrics.items()}
    return Curve(name, sums, _summed(empty, groups), _summed(whole, groups), _sizes(graph))


def _summed(values: Float[np.ndarray, "*share prompt"], groups: Int[np.ndarray, " prompt"]) -> np.ndarray:
    """The sum over the prompts of each group, along the last axis."""
    return values @ np.eye(int(groups.max()) + 1)[groups]


def _number(metric: Any, logits: torch.Tensor) -> np.ndarray:
    values: np.ndarray = metric(logits[:, None])[:, 0].double().cpu().numpy()
    return values


def _sizes(graph: Graph) -> list[int]:
    return [max(1, round(share * int(graph.possible.sum()))) for share in SHARES]
