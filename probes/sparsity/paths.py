"""The cheapest path through skipped, base and tuned layers that serves each sample best, against routers (Duo-LLM)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.halves import answer_scores, halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored, with_q
from probes.sparsity.row_paths import BIG, NAMES, SKIP, SMALL, RowPaths
from workbench.argument_checks import check_pair
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Int

MOST = 800
"""Paths that are tried one by one; of deeper models a greedy search is made."""


@dataclass(frozen=True, kw_only=True)
class LayerPaths(ProbeResult):
    """What the best path of each sample does, against fixed paths and a trained router.

    ``table``: router (all tuned, all base, oracle, fixed, trained, random); ``score``, the log-probability of the
    answer per token, with interval; ``control``, the score of random paths of the oracle's costs; ``regret`` (the
    oracle's score minus this one, with regret_low, regret_high); ``cost`` (mean over samples); ``q`` of the difference
    from the control.
    """

    use: pd.DataFrame
    """layer, skip, base, tuned: shares of samples whose oracle path runs the layer so."""
    paths: pd.DataFrame
    """prompt, router, path (a letter per layer: s, b, t), cost, score."""
    search: str
    """exhaustive, or greedy."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Paths through the layers"
    unit: ClassVar[str] = "log-probability of the answer per token"

    def figure(self) -> go.Figure:
        """How each layer is run on the oracle's paths."""
        drawn = go.Figure([go.Bar(x=self.use["layer"], y=self.use[name], name=name) for name in NAMES])
        drawn.update_layout(
            title=self.title, barmode="stack", xaxis_title="layer", yaxis_title="share of the oracle's paths"
        )
        return drawn

    def summary(self) -> str:
        """Scores and regrets."""
        said = ", ".join(
            f"{row.router} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}] at cost {row.cost:.2g}"
            for row in self.table.itertuples()
        )
        return f"{self.search} search: {said}; intervals over {self.resampled}; control: {self.control}"


@method(
    "layer-paths",
    group="layers",
    question="Which layers does each sample need tuned, which would the base's do, and which none?",
    papers=("Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",),
    needs=Needs(columns=("answer",)),
    cost="one pass per path of up to 800, else layers squared passes",
    example="--budget 0.7",
)
def layer_paths(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    budget: float = 0.7,
    small_cost: float = 0.5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerPaths:
    """Search each sample's best path on which every layer is skipped (cost 0), the base's, or the tuned model's (1).

    Duo-LLM's oracle with the pair's two versions of a layer as the small and the big module. The oracle sees the
    answer; ``fixed`` is the path that is best on average for the other half of the prompts, ``trained`` a linear router
    that reads the prompt's mean embedding and was fitted to the oracle's paths there. Regret is what each loses to the
    oracle.

    Args:
        pair: Both models; of an adapter pair the adapter is taken out of single layers.
        prompts: Prompts with answers.
        budget: The cost that a path may have, as a share of all layers tuned.
        small_cost: What a base's layer costs, beside 1 for a tuned one.
        seed: Of halves, random paths and resampling.

    Returns:
        A :class:`LayerPaths`. Of a base with itself, tuned layers are never needed more than base ones.

    Raises:
        UserError: A budget or cost outside 0 to 1, or rows without answers.
    """
    check_pair(pair, prompts)
    if not 0 < budget <= 1 or not 0 <= small_cost <= 1:
        raise UserError("budget is a share above 0, up to 1, and small_cost one from 0 to 1.")
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    training, reported = halves(rows, seed)
    search = _Search(pair, budget * pair.tuned.n_layers, np.array([0.0, small_cost, 1.0]), work)
    with counted(pair.base, pair.tuned) as passes:
        known = search.oracle(training)
        oracle = search.oracle(reported)
        fixed = search.fixed(known, training)
        routes = {
            "all tuned": np.full_like(oracle, BIG), "all base": np.full_like(oracle, SMALL), "oracle": oracle,
            "fixed": np.tile(fixed, (len(reported), 1)),
            "trained": _routed(pair, training, known, reported, search),
        }  # fmt: skip
        random = _shuffled(oracle, seed)
        scores = {name: search.scores(reported, paths) for name, paths in {**routes, "random": random}.items()}
    return LayerPaths(
        table=_table(scores, {**routes, "random": random}, search, reported, seed),
        control="the oracle's choices for each sample, given to its layers at random",
        provenance=Provenance.of("layer_paths", pair, rows, seed=seed, forward_passes=passes.forward),
        use=_use(oracle), paths=_listed({**routes, "random": random}, scores, search),
        search="exhaustive" if search.exhaustive else "greedy", resampled=units_of(reported.clusters),
    )  # fmt: skip


class _Search:
    """Scores of paths, and the best of each row within the budget."""

    def __init__(self, pair: ModelPair, budget: float, costs: Float[np.ndarray, " choice"], work: Work) -> None:
        self.pair, self.budget, self.costs, self.work = pair, budget + 1e-9, costs, work
        self.n_layers = pair.tuned.n_layers
        self.exhaustive = bool(3**self.n_layers <= MOST)

    def scores(self, rows: Prompts, paths: Int[np.ndarray, "row layer"]) -> Float[np.ndarray, " row"]:
        """The answer's log-probability of each row on its own path."""

        def per_row(members: list[int]) -> RowPaths:
            return RowPaths(self.pair, torch.from_numpy(paths[members]))

        return answer_scores(Subject("paths", self.pair.tuned, per_row=per_row), rows, self.work)

    def oracle(self, rows: Prompts) -> Int[np.ndarray, "row layer"]:
        return self._tried(rows) if self.exhaustive else self._greedy(rows)

    def affordable(self) -> list[np.ndarray]:
        """Every path within the budget, the cheapest first."""
        every = [np.array(combination) for combination in itertools.product((SKIP, SMALL, BIG), repeat=self.n_layers)]
        paths = [path for path in every if self.costs[path].sum() <= self.budget]
        return sorted(paths, key=lambda choice: float(self.costs[choice].sum()))

    def _tried(self, rows: Prompts) -> Int[np.ndarray, "row layer"]:
        paths = self.affordable()
        scores = np.stack([self.scores(rows, np.tile(path, (len(rows), 1))) for path in paths])
        best = (scores >= scores.max(0) - 1e-9).argmax(0)  # of equals, the cheapest
        return np.stack([paths[int(number)] for number in best])

    def _greedy(self, rows: Prompts) -> Int[np.ndarray, "row layer"]:
        """From all tuned: step by step the downgrade that loses least per saved cost, until the budget is kept."""
        paths = np.full((len(rows), self.n_layers), BIG)
        now = self.scores(rows, paths)
        while (over := self.costs[paths].sum(1) > self.budget).any():
            gains = np.full((2 * self.n_layers, len(rows)), -np.inf)
            values = np.zeros_like(gains)
            for number, (layer, choice) in enumerate(itertools.product(range(self.n_layers), (SKIP, SMALL))):
                tried = paths.copy()
                tried[:, layer] = np.minimum(paths[:, layer], choice)
                saved = self.costs[paths[:, layer]] - self.costs[tried[:, layer]]
                if not (saved[over] > 0).any():
                    continue
                values[number] = self.scores(rows, tried)
                gains[number] = np.where(saved > 0, (values[number] - now) / np.maximum(saved, 1e-9), -np.inf)
            best = gains.argmax(0)
            for row in np.flatnonzero(over):
                layer, choice = divmod(int(best[row]), 2)
                paths[row, layer] = (SKIP, SMALL)[choice]
                now[row] = values[best[row], row]
        return paths

    def fixed(self, known: Int[np.ndarray, "row layer"], rows: Prompts) -> Int[np.ndarray, " layer"]:
        """The path within the budget that is best on average."""
        candidates = self.affordable() if self.exhaustive else list(np.unique(known, axis=0))
        means = [self.scores(rows, np.tile(path, (len(rows), 1))).mean() for path in candidates]
        return candidates[int(np.argmax(means))]


def _routed(
    pair: ModelPair, training: Prompts, known: np.ndarray, reported: Prompts, search: _Search
) -> Int[np.ndarray, "row layer"]:
    """Each layer's choice by ridge regression on mean embeddings; the least sure choices give way to the budget."""
    table = pair.tuned.inner.get_input_embeddings().weight.detach().float().cpu()

    def features(rows: Prompts) -> np.ndarray:
        ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
        means = np.stack([table[torch.tensor(row)].mean(0).numpy() for row in ids])
        return np.hstack([means, np.ones((len(means), 1))])

    x, new = features(training), features(reported)
    scale = np.trace(x @ x.T) / len(x)
    wanted = np.eye(3)[known].reshape(len(x), -1)
    inner = np.linalg.solve(x @ x.T + 0.1 * scale * np.eye(len(x)), wanted)
    liked = ((new @ x.T) @ inner).reshape(len(new), search.n_layers, 3)
    paths = liked.argmax(-1)
    for row in range(len(paths)):
        while search.costs[paths[row]].sum() > search.budget:
            open_ = np.flatnonzero(paths[row] > SKIP)
            lost = [liked[row, n, paths[row, n]] - liked[row, n, paths[row, n] - 1] for n in open_]
            paths[row, open_[int(np.argmin(lost))]] -= 1
    return paths


def _shuffled(paths: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permuted(paths, axis=1)


def _table(
    scores: dict[str, np.ndarray], paths: dict[str, np.ndarray], search: _Search, rows: Prompts, seed: int
) -> pd.DataFrame:
    lines = []
    for name, values in scores.items():
        regret = scored(scores["oracle"] - values, name="regret", seed=seed, clusters=rows.clusters)
        lines.append({
            "router": name, **beside_control(values, scores["random"], rows.clusters, seed=seed),
            "regret": regret["regret"], "regret_low": regret["low"], "regret_high": regret["high"],
            "cost": search.costs[paths[name]].sum(1).mean(),
        })  # fmt: skip
    return with_q(lines)


def _use(oracle: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame([
        {"layer": layer, **{name: float((oracle[:, layer] == number).mean()) for number, name in enumerate(NAMES)}}
        for layer in range(oracle.shape[1])
    ])  # fmt: skip


def _listed(paths: dict[str, np.ndarray], scores: dict[str, np.ndarray], search: _Search) -> pd.DataFrame:
    return pd.DataFrame([
        {"prompt": row, "router": name, "path": "".join("sbt"[step] for step in path),
         "cost": float(search.costs[path].sum()), "score": float(scores[name][row])}
        for name, own in paths.items() for row, path in enumerate(own)
    ])  # fmt: skip
