"""Training rows ranked by what they have to do with a behaviour, beside chance and the text's likeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.dictionaries.labelled import auroc
from probes.resampling import cluster_means
from probes.results import ProbeResult
from workbench.cards import visible
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.stats.bootstrap import mean_interval, mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import permutation
from workbench.typing import Bool, Float

CONTROL = "the same score for random other training rows in the queries' place"


@dataclass(frozen=True, kw_only=True)
class RowInfluence(ProbeResult):
    """Every training row's score for the behaviour that the queries show.

    ``table``: one line per training row: ``row`` (its number), ``score`` (mean over queries) with its interval over
    queries or their groups, ``control`` (mean over random other training rows as queries) and q, ``tokens`` of the
    answer, ``bm25`` and ``embedding`` (the text rankers' mean scores), and the row's ``text``.
    """

    ranker: str
    benchmark: pd.DataFrame
    """Where rows and queries say which belong together: ranker, k, precision, low, high, n; ``auc`` with its interval,
    the chance that a right row stands before another; ``near_auc`` with its interval, before a wrong row of the same
    subject (NaN without ``near``). ``random`` is what chance gives."""
    queries: int

    title: ClassVar[str] = "Training rows behind a behaviour"
    unit: ClassVar[str] = "influence on the behaviour"

    def top(self, k: int) -> list[int]:
        """The numbers of the ``k`` rows of highest score."""
        return [int(row) for row in self.frame()["row"].head(k)]

    def figure(self) -> go.Figure:
        """All rows by rank, the significant ones coloured."""
        from workbench.figures.influence import influence_figure

        return influence_figure(self.table, title=f"{self.title}, by {self.ranker}")

    def summary(self) -> str:
        best = self.frame().iloc[0]
        text = (
            f"{int((self.table['q'] < 0.05).sum())} of {len(self.table)} training rows go with the {self.queries} "
            f"queries beyond random rows (q < 0.05); most: row {best['row']:.0f}, {best['score']:.3g} "
            f"[{best['low']:.3g}, {best['high']:.3g}], control {best['control']:.3g}: {best['text']}"
        )
        for line in self.benchmark.to_dict("records"):
            text += f"; {line['ranker']}: precision at {line['k']} {_with_interval(line, 'precision')}"
            for name, words in (("auc", "AUC"), ("near_auc", "AUC among rows of its subject")):
                if not np.isnan(line.get(name, np.nan)):  # results of before have precision alone
                    text += f", {words} {_with_interval(line, name)}"
        return f"{text}; control: {self.control}"


def row_table(
    similarity: Float[np.ndarray, "row query"], control: Float[np.ndarray, "row stand_in"], rows: Prompts,
    queries: Prompts, texts: Mapping[str, Float[np.ndarray, "row query"]], draws: int, seed: int,
    subtasks: Sequence[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One line per row; ``control`` is NaN where a stand-in is the row itself.

    With ``subtasks`` (each query's), the line of the sub-task with the highest score, its p times their number.
    """
    of_query = np.array(["all"] * len(queries) if subtasks is None else subtasks)
    names = list(dict.fromkeys(of_query.tolist()))
    scores = [
        _against_stand_ins(similarity[:, of_query == name], control, queries.clusters[of_query == name], draws, seed)
        for name in names
    ]
    best = np.argmax([table["score"] for table in scores], axis=0)
    table = pd.concat([scores[number].iloc[[row]] for row, number in enumerate(best)], ignore_index=True)
    table.insert(0, "row", np.arange(len(rows)))
    table["q"] = q_values(np.minimum(1.0, table.pop("p").to_numpy() * len(names)))
    if subtasks is not None:
        table["subtask"] = [names[number] for number in best]
    return table.assign(
        **{name: values.mean(1) for name, values in texts.items()},
        text=[visible(f"{row.shown} | {row.answer or ''}")[:160] for row in rows],
    )


def _against_stand_ins(
    similarity: Float[np.ndarray, "row query"], control: Float[np.ndarray, "row stand_in"],
    clusters: np.ndarray, draws: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Score, interval, control and p of every row over these queries."""
    intervals = mean_intervals(similarity.T, clusters=clusters, draws=max(draws, 100), seed=seed)
    means = np.nanmean(control, axis=1)
    filled = np.where(np.isnan(control), means[:, None], control)
    units = cluster_means(similarity.T, clusters)
    p = permutation(units, filled.T, draws=max(draws, 1000), seed=seed, alternative="greater").p
    return pd.DataFrame({
        "score": similarity.mean(1), "low": intervals.low, "high": intervals.high, "control": means, "p": p,
    })  # fmt: skip


def subtasks_of(queries: Prompts, column: str | None) -> list[str] | None:
    """Each query's sub-task; raises :class:`UserError` where one has a single query (or a single group of them)."""
    if column is None:
        return None
    of_query = [str(value) for value in _column(queries, column, "query")]
    for name in dict.fromkeys(of_query):
        own = [number for number, value in enumerate(of_query) if value == name]
        if len(np.unique(queries.clusters[own])) < 2:
            raise UserError(
                f"The sub-task {name!r} has one query (or one group of them), which has no spread to judge influence "
                "by: give at least two of each."
            )
    return of_query


def benchmark_of(
    rankers: Mapping[str, Float[np.ndarray, "row query"]], rows: Prompts, queries: Prompts, match: str | None, k: int,
    near: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Precision at ``k`` and AUC of every ranker, where a row is right for a query when both have the same ``match``.

    ``near``: a column of the subject: the near AUC is against wrong rows of the query's own subject alone.
    """
    measured = [name for kind in ("precision", "auc", "near_auc") for name in _with_edges(kind)]
    if match is None:
        return pd.DataFrame(columns=["ranker", "k", *measured, "n"])
    wanted: np.ndarray = relevance(rows, queries, match)
    close = np.zeros_like(wanted) if near is None else relevance(rows, queries, near)
    k, known = min(k, len(rows)), np.asarray(wanted.any(0))
    chance = {"precision": wanted.mean(0), "auc": np.full(len(queries), 0.5), "near_auc": np.full(len(queries), 0.5)}
    if near is None:
        chance["near_auc"][:] = np.nan
    lines = [{"ranker": "random", "k": k, **_over_queries(chance, known, queries)}]
    for name, scores in rankers.items():
        order = np.argsort(-scores, axis=0, kind="stable")[:k]
        of_query = {
            "precision": np.take_along_axis(wanted, order, 0).mean(0),
            "auc": _aucs(scores, wanted, np.ones_like(wanted)),
            "near_auc": _aucs(scores, wanted, wanted | close),
        }
        lines.append({"ranker": name, "k": k, **_over_queries(of_query, known, queries)})
    return pd.DataFrame(lines, columns=["ranker", "k", *measured, "n"])


def _with_interval(line: Mapping[Any, Any], name: str) -> str:
    estimate, low, high = (line[column] for column in _with_edges(name))
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def _with_edges(name: str) -> tuple[str, str, str]:
    return (name, "low", "high") if name == "precision" else (name, f"{name}_low", f"{name}_high")


def _aucs(
    scores: Float[np.ndarray, "row query"], wanted: Bool[np.ndarray, "row query"], among: Bool[np.ndarray, "row query"]
) -> Float[np.ndarray, " query"]:
    """Per query, the chance that a right row stands before a wrong one of ``among``; NaN where either is missing."""
    return np.array([
        auroc(scores[among[:, query], query, None], wanted[among[:, query], query])[0]
        for query in range(wanted.shape[1])
    ])  # fmt: skip


def _over_queries(of_query: Mapping[str, np.ndarray], known: np.ndarray, queries: Prompts) -> dict[str, Any]:
    """Means over the queries that have a right row, with their intervals over queries or groups of them."""
    line: dict[str, Any] = {"n": int(known.sum())}
    for name, values in of_query.items():
        known_here = known & ~np.isnan(values)
        numbers = (np.nan, np.nan, np.nan)
        if known_here.any():
            interval = mean_interval(values[known_here], clusters=queries.clusters[known_here])
            numbers = (interval.estimate, interval.low, interval.high)
        line |= dict(zip(_with_edges(name), numbers, strict=True))
    return line


def relevance(rows: Prompts, queries: Prompts, match: str) -> np.ndarray:
    """[row, query] whether both have the same value in the column ``match``."""
    of_rows, of_queries = (_column(table, match) for table in (rows, queries))
    return np.array([[value is not None and value == other for other in of_queries] for value in of_rows])


def _column(rows: Prompts, name: str, kind: str = "row") -> Sequence[Any]:
    values = [row.as_dict().get(name) for row in rows]
    if all(value is None for value in values):
        meant = "training rows and queries share" if kind == "row" else "the queries have"
        raise UserError(f"No {kind} has a column {name!r}: name one that {meant}.")
    return values


def stand_ins(rows: Prompts, count: int, seed: int) -> list[int]:
    """Random training rows that take the queries' place in the control."""
    return sorted(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())


def without_self(control: Float[np.ndarray, "row stand_in"], drawn: Sequence[int]) -> Float[np.ndarray, "row stand_in"]:
    """The control with NaN where a row would be its own query."""
    made = control.astype(np.float64).copy()
    made[list(drawn), np.arange(len(drawn))] = np.nan
    return made


def check_rows(
    rows: Prompts, queries: Prompts, controls: int, match: str | None = None, near: str | None = None
) -> None:
    """Raises :class:`UserError` for too few rows or queries, copied queries, unknown columns, ``near`` alone, and where
    no query has a right row, or none has a wrong one near it."""
    if near is not None and match is None:
        raise UserError(f"near={near!r} says which rows are of the query's subject: give match too, which are right.")
    if match is not None:
        right = relevance(rows, queries, match)
        if not right.any():
            raise UserError(
                f"No query shares its {match} with a training row: give rows that say {match}, or no match."
            )
        if near is not None and not (relevance(rows, queries, near) & ~right).any():
            raise UserError(f"No training row shares its {near} and not its {match} with a query: give no near.")
    if len(rows) < max(4, controls + 1):
        raise UserError(
            f"{len(rows)} training rows are too few for {controls} stand-ins: give more rows or less controls."
        )
    if len(np.unique(queries.clusters)) < 2:
        raise UserError("One query (or one group of them) has no spread to judge influence by: give at least two.")
    seen = {(row.said, row.answer) for row in rows}
    copied = sum((row.said, row.answer) in seen for row in queries)
    if copied:
        raise UserError(
            f"{copied} of {len(queries)} queries are training rows word for word, which any ranker finds: give other "
            "wordings as queries."
        )


def check_said(rows: Prompts, said: Mapping[str, Any]) -> None:
    """:func:`check_rows` of a call by the names of its options, before its models are loaded."""
    check_rows(rows, said["queries"], said["controls"], said["match"], said["near"])
