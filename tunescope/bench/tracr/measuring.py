"""What methods name on compiled programs, against what the compiler put there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import probes
from probes.edges.graph import Graph
from probes.edges.scoring import metric_of
from probes.edges.sending import EdgeRun, sent
from probes.patches.task import make_task
from tunescope.bench.outside import timed
from tunescope.bench.tracr.pairs import TracrPair, contrasts, cut_pairs, pairs_of
from tunescope.bench.tracr.porting import Component, names, ported, program, structural_edges, tokenizer
from workbench.errors import UserError
from workbench.finished_batches import batch, clock, scope
from workbench.models.adapted import AdaptedModel
from workbench.stats.bootstrap import mean_interval

Scores = dict[Component, float]
CHANGED = "which component was replaced"
CIRCUIT = "which components are in the circuit"
EDGES = "which edges are in the circuit"
CUT = "which edge is in the base alone"


def measure(programs: list[str] | None, seeds: int, say: Callable[[str], None]) -> pd.DataFrame:
    """One line per program, pair, method and seed: precision at k and the area under the ROC curve."""
    lines: list[dict[str, Any]] = []
    with scope(lambda: "bench tracr"):
        for name, seed in product(programs or names(), range(seeds)):
            start, weights = clock(), program(name).weights
            for question, ask in (("changes", _changes), ("circuits", _circuits), ("cuts", _cuts)):
                lines += batch(question, [name, seed, weights], lambda: timed(lambda: list(ask(name, seed))))  # noqa: B023
            say(f"{name}, seed {seed}: {clock() - start:.1f} s")
    return pd.DataFrame(lines)


def cost(programs: list[str] | None, seeds: int) -> pd.DataFrame:
    """Per program: its components and, where it has contrasts, its edges, of which each is patched twice per seed."""
    lines = []
    for name in programs or names():
        source = program(name)
        graph = Graph(AdaptedModel(ported(source), tokenizer(source), name=name))
        edges = int(graph.possible.sum())
        lines.append(
            {"program": name, "components": len(source.circuit), "edges": edges, "edge passes": 2 * edges * seeds}
        )
    return pd.DataFrame(lines)


def summarised(lines: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs (or programs) and seeds with 95 % intervals; programs are what is resampled. ``auroc of seeds``:
    the least and the most of the seeds' means."""
    rows = []
    for (question, name), part in lines.groupby(["question", "method"], sort=False):
        seeds = part["seed"].nunique()
        row: dict[str, Any] = {"question": question, "method": name, "seeds": seeds, "cases": len(part)}
        for measure in ("precision", "auroc"):
            interval = mean_interval(part[measure].to_numpy(), clusters=pd.factorize(part["program"])[0])
            row |= {measure: interval.estimate, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
        by_seed = part.groupby("seed")["auroc"].mean()
        ends = f"{by_seed.min():.3g} to {by_seed.max():.3g}"
        rows.append({**row, "auroc of seeds": ends, "chance": part["chance"].mean()})
    return pd.DataFrame(rows)


def _changes(name: str, seed: int) -> Iterator[dict[str, Any]]:
    for made in pairs_of(name, seed):
        for method, run in _ON_PAIRS.items():
            scores = run(made, seed)
            yield _line(CHANGED, made.name, method, scores, {made.component}, name, seed)
        yield _line(CHANGED, made.name, "random", _random(made, seed), {made.component}, name, seed)


def _circuits(name: str, seed: int) -> Iterator[dict[str, Any]]:
    source = program(name)
    hf = ported(source, seed=seed)
    rows = contrasts(source, hf, seed)
    if len(rows) < 4:  # a program that says the same of every text of a length
        return
    model = AdaptedModel(hf, tokenizer(source), name=name)
    for method in ("exact", "attribution", "ig"):
        effects = _patched(model, rows, method, seed, source="corrupted", target="clean")
        yield _line(CIRCUIT, name, f"patching, {method}", effects, set(source.circuit), name, seed)
    edges = probes.edge_attribution(model, rows, kept=100_000, steps=10, draws=200, seed=seed)
    by_edge = edges.table.set_index(["sender", "receiver"])["score"].abs()
    yield _line(
        CIRCUIT, name, "edges (EAP-IG), summed", _by_sender(edges.table, "score"), set(source.circuit), name, seed
    )
    truth = structural_edges(source, hf)
    for method, scores in (
        ("edge patching, exact", _by_edge(model, rows, seed, method="exact")),
        ("EAP-IG", by_edge.to_dict()),
        ("EAP", _by_edge(model, rows, seed, steps=1)),
        ("random", dict(zip(by_edge.index, np.random.default_rng(seed).random(len(by_edge)), strict=True))),
    ):
        yield _line(EDGES, name, method, scores, truth, name, seed)


def _cuts(name: str, seed: int) -> Iterator[dict[str, Any]]:
    for pair, edge, rows in cut_pairs(name, seed):
        if _exact_effect(pair.base, rows, edge) < 0.05:
            continue  # it carries what prompts and contrasts share, such as positions: no contrast can show it
        case = f"{name}, {edge[0]} -> {edge[1]}"
        labels: dict[Literal["exact", "ig"], str] = {"exact": "edge patching, exact", "ig": "EAP-IG"}
        for method, label in labels.items():
            table = probes.edge_attribution(
                pair, rows, method=method, kept=100_000, steps=10, draws=200, batch_size=32, seed=seed
            ).table
            keys = list(zip(table["sender"], table["receiver"], strict=True))
            lost = np.where(table["present"] == "base", table["base"].abs() - table["tuned"].abs(), 0.0)
            yield _line(CUT, case, label, dict(zip(keys, lost, strict=True)), {edge}, name, seed)
            if method == "exact":
                draw = np.random.default_rng(seed).random(len(keys))
                yield _line(CUT, case, "random", dict(zip(keys, draw, strict=True)), {edge}, name, seed)


def _exact_effect(model: AdaptedModel, rows: Any, edge: tuple[str, str]) -> float:
    """Mean size of what the metric loses when one edge alone carries what it carries on the contrast."""
    graph, task = Graph(model), make_task(model, rows, "corrupted", "clean")
    members = list(range(len(rows)))
    corrupted, clean = task.batch(members)
    other, _ = sent(graph, corrupted)
    fed = np.array(
        [[(sender.label, other_end.label) == edge for other_end in graph.receivers] for sender in graph.senders]
    )
    metric, run = metric_of(task, members), EdgeRun(graph, other)
    before, after = (metric(run(clean, mask)[:, None])[:, 0] for mask in (None, fed))
    return float((before - after).abs().mean())


def _line(
    question: str, case: str, method: str, scores: dict[Any, float], truth: set[Any], name: str, seed: int
) -> dict[str, Any]:
    """Precision at k, where k is how many are right (ties count by their share), and the area under the ROC curve."""
    places = list(scores)
    values, right = np.array([scores[place] for place in places]), np.array([place in truth for place in places])
    k = int(right.sum())
    bar = np.sort(values)[::-1][k - 1]
    above, level = values > bar, values == bar
    hits = right[above].sum() + right[level].mean() * (k - above.sum())
    return {
        "question": question, "case": case, "method": method, "program": name, "seed": seed,
        "precision": float(hits / k), "auroc": float(roc_auc_score(right, values)), "chance": k / len(places),
    }  # fmt: skip


def _weights(made: TracrPair, seed: int) -> Scores:  # noqa: ARG001 (one signature for all)
    result = probes.weight_delta(made.pair)
    scores = _every(made)
    for row in result.frame("head").to_dict("records"):
        scores[int(row["layer"]), f"H{int(row['head'])}"] += abs(float(row["score"]))
    for row in result.frame().to_dict("records"):
        if "mlp" in str(row["module"]):
            scores[int(row["layer"]), "mlp"] += abs(float(row["score"]))
    return scores


def _patched(subject: Any, rows: Any, method: str, seed: int, **runs: Any) -> Scores:
    """Size of the effect of patching each head's write and each MLP's output, on all tokens at once."""
    scores: Scores = {}
    for sites in ("heads", "mlp_out"):
        options = {"method": method, "confirm": 0.0, "positions": "all", "together": 0, "controls": 10,
                   "normalise": False, "draws": 50, "seed": seed, **runs}  # fmt: skip
        table = probes.patching(subject, rows, sites, **options).table
        column = "score" if method == "exact" else "attribution"
        for row in table.to_dict("records"):
            part = f"H{int(row['head'])}" if sites == "heads" else "mlp"
            scores[int(row["layer"]), part] = abs(float(row[column]))
    return scores


def _patching(method: str) -> Callable[[TracrPair, int], Scores]:
    return lambda made, seed: _patched(made.pair, made.prompts, method, seed, inputs="target")


def _as_it_runs(made: TracrPair, seed: int) -> Scores:
    return _patched(made.pair, made.prompts, "exact", seed)


def _by_sender(table: pd.DataFrame, column: str) -> Scores:
    """Size of all edges that leave a head or an MLP."""
    sizes = table.assign(size=table[column].abs()).groupby("sender")["size"].sum()
    scores: Scores = {}
    for sender, size in sizes.items():
        if sender == "embed":
            continue
        layer, _, part = str(sender)[1:].replace(" MLP", "Hmlp").partition("H")
        scores[int(layer), part if part == "mlp" else f"H{part}"] = float(size)
    return scores


def _edge_change(made: TracrPair, seed: int) -> Scores:
    rows = contrasts(made.source, made.pair.base.hf, seed)
    if len(rows) < 4:
        return _every(made)
    result = probes.edge_attribution(made.pair, rows, kept=100_000, steps=10, draws=200, seed=seed)
    return {**_every(made), **_by_sender(result.table, "score")}


def _by_edge(model: AdaptedModel, rows: Any, seed: int, **options: Any) -> dict[Any, float]:
    table = probes.edge_attribution(model, rows, kept=100_000, draws=200, batch_size=32, seed=seed, **options).table
    scores: dict[Any, float] = table.set_index(["sender", "receiver"])["score"].abs().to_dict()
    return scores


def _every(made: TracrPair) -> Scores:
    model = made.pair.base
    heads: Scores = {(layer, f"H{head}"): 0.0 for layer in range(model.n_layers) for head in range(model.n_heads)}
    return {**heads, **{(layer, "mlp"): 0.0 for layer in range(model.n_layers)}}


def _random(made: TracrPair, seed: int) -> Scores:
    draw = np.random.default_rng(seed)
    return {component: float(draw.random()) for component in _every(made)}


def _paths(made: TracrPair, seed: int) -> Scores:
    """Heads that reach the logits, or a later head's q, k or v directly (MLPs are not scored by path patching)."""
    scores = _every(made)
    try:
        result = probes.path_patching(made.pair, made.prompts, source="tuned", target="base", metric="logit_diff",
                                     only_correct=False, controls=10, draws=50, seed=seed)  # fmt: skip
    except UserError:  # no head says anything else: the change is in an MLP
        return scores
    for row in result.table.to_dict("records"):
        scores[int(row["layer"]), f"H{int(row['head'])}"] = abs(float(row["score"]))
    return scores


_ON_PAIRS: dict[str, Callable[[TracrPair, int], Scores]] = {
    "weight_delta": _weights,
    "patching, same inputs": _patching("exact"),
    "attribution, same inputs": _patching("attribution"),
    "integrated gradients, same inputs": _patching("ig"),
    "patching, as it runs": _as_it_runs,
    "path patching (heads)": _paths,
    "edges (EAP-IG), changed": _edge_change,
}
