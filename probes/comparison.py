"""Whether two maps agree: ranks, overlap of their best cells against chance (Merullo, Eickhoff & Pavlick 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import hypergeom, spearmanr

from probes.call_settings import call_settings
from probes.cells import columns_of, keys
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from workbench.cells import COLUMNS
from workbench.errors import UserError
from workbench.figures.overlap import overlap_curve


class Overlap(NamedTuple):
    """How much of two chosen sets is shared, beside what two random sets of these sizes share.

    ``low`` and ``high`` bound the number shared by chance (95 %); ``p`` is the chance of sharing as many or more.
    """

    shared: int
    of_first: int
    of_second: int
    total: int
    expected: float
    low: int
    high: int
    p: float

    @property
    def jaccard(self) -> float:
        union = self.of_first + self.of_second - self.shared
        return self.shared / union if union else float("nan")

    @property
    def expected_jaccard(self) -> float:
        """Of the expected number shared; for equal K, (K/N) / (2 - K/N)."""
        return self.expected / max(self.of_first + self.of_second - self.expected, 1e-12)

    @property
    def recall_of_first(self) -> float:
        """|A and B| / |A|: how much of the first is also in the second."""
        return self.shared / self.of_first if self.of_first else float("nan")

    @property
    def recall_of_second(self) -> float:
        return self.shared / self.of_second if self.of_second else float("nan")


def overlap(shared: int, of_first: int, of_second: int, total: int) -> Overlap:
    """The overlap of two sets out of ``total`` cells, with its hypergeometric chance level (mean K1 K2 / N)."""
    chance = hypergeom(total, of_first, of_second)
    low, high = (int(edge) for edge in chance.ppf([0.025, 0.975]))
    return Overlap(
        shared, of_first, of_second, total, of_first * of_second / total, low, high, float(chance.sf(shared - 1))
    )


@dataclass(frozen=True, kw_only=True)
class Comparison(ProbeResult):
    """Agreement of two maps over the cells both have.

    ``table`` has a row per k: ``score`` is |A and B| / k of both maps' k best cells, ``control`` its chance level
    k / N with the 95 % range ``low`` to ``high`` of chance, ``q`` from the hypergeometric tail; also shared,
    jaccard and expected_jaccard. ``spearman`` correlates all scores. ``own`` compares the cells each map calls
    significant (q < 0.05), whose numbers may differ: its recalls are asymmetric.
    """

    spearman: float
    spearman_p: float
    n_cells: int
    own: dict[str, float]

    title = "Agreement of two maps"
    unit = "share of the k best cells in both"

    def figure(self) -> go.Figure:
        """Overlap against k, with the range of chance."""
        return overlap_curve(self.table, title=f"{self.title}: {self._rank_agreement()}")

    def summary(self) -> str:
        """Rank agreement and the overlap at a few k."""
        best = self.table.iloc[min(len(self.table) - 1, 9)]
        return (
            f"{self.n_cells} cells, {self._rank_agreement()}; of the {int(best['k'])} "
            f"best, {int(best['shared'])} are shared ({best['expected']:.2g} by chance, q {best['q']:.2g})"
        )

    def _rank_agreement(self) -> str:
        if math.isnan(self.spearman):
            return "no rank agreement (one map has the same score everywhere)"
        return f"Spearman {self.spearman:.3f} (p {self.spearman_p:.2g})"


def compare(first: Any, second: Any, *, ks: list[int] | None = None, seed: int = 0) -> Comparison:
    """Compare two maps: results of any probe, or DataFrames with cell columns (layer, head, ...) and ``score``.

    Cells are matched by the cell columns both have; cells in one map alone are left out. ``ks``: sizes of the
    compared tops (default 1 to N, at most 100 values). Cells of equal score are ranked at random (``seed``), in each
    map by itself: in order of place, two maps of zeros would agree wholly. Raises :class:`UserError` for maps with
    fewer than two cells in common or with repeated cells.
    """
    left, right, cells = _matched(first, second)
    n = len(left)
    correlation = spearmanr(left["score"], right["score"]) if _varies(left) and _varies(right) else None
    sizes = ks if ks is not None else sorted({int(k) for k in np.unique(np.geomspace(1, n, min(n, 100)).round())})
    if bad := [k for k in sizes if not 1 <= k <= n]:
        raise UserError(f"k = {bad[0]} is out of range: the maps share {n} cells.")
    generator = np.random.default_rng(seed)
    first_best, second_best = _ranked(left, generator), _ranked(right, generator)
    rows = [_row(first_best, second_best, k) for k in sizes]

    return Comparison(
        table=with_q(rows),
        control=f"two random choices of k of the {n} cells (hypergeometric)",
        provenance=Provenance.of(
            "compare", _models(first, second), seed=seed,
            settings=call_settings(None, first=first, second=second, ks=ks, cells=cells),
        ),
        spearman=float(correlation.statistic) if correlation is not None else float("nan"),
        spearman_p=float(correlation.pvalue) if correlation is not None else float("nan"),
        n_cells=n,
        own=_own(left, right),
    )  # fmt: skip


def _frame(source: Any) -> pd.DataFrame:
    # where a lower score means more, a result says so by its importance
    frame = getattr(source, "importance", source.frame)() if isinstance(source, ProbeResult) else source
    if not isinstance(frame, pd.DataFrame) or "score" not in frame:
        raise UserError("A map is a probe's result or a DataFrame with cell columns and 'score'.")
    return frame[frame["score"].notna()]


def _matched(first: Any, second: Any) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    frames = [_frame(first), _frame(second)]
    cells = tuple(columns_of(*frames))
    if not cells:
        raise UserError(f"The maps have no cell column in common; expected one of {', '.join(COLUMNS)}.")
    keyed = [frame.set_axis(pd.Index(keys(frame, cells), tupleize_cols=False), axis=0) for frame in frames]
    for frame in keyed:
        if frame.index.has_duplicates:
            raise UserError(
                f"A map has several rows for one cell ({frame.index[frame.index.duplicated()][0]}) by the columns "
                f"{', '.join(cells)}; compare maps of the same kind of cell."
            )
    common = keyed[0].index.isin(keyed[1].index)
    if common.sum() < 2:
        raise UserError(f"The maps share {common.sum()} cells by {', '.join(cells)}; at least 2 are needed.")
    left = keyed[0][common]
    return left.reset_index(drop=True), keyed[1].reindex(left.index).reset_index(drop=True), cells


def _varies(frame: pd.DataFrame) -> bool:
    return frame["score"].nunique() > 1


def _ranked(frame: pd.DataFrame, generator: np.random.Generator) -> list[int]:
    """Numbers of the cells, the best first, equal ones in random order."""
    return np.lexsort((generator.random(len(frame)), -frame["score"].to_numpy(np.float64))).tolist()


def _row(left: list[int], right: list[int], k: int) -> dict[str, Any]:
    agreement = overlap(len({*left[:k]} & {*right[:k]}), k, k, len(left))
    return {
        "k": k, "score": agreement.shared / k, "low": agreement.low / k, "high": agreement.high / k,
        "control": k / len(left),
        "shared": agreement.shared, "expected": agreement.expected, "jaccard": agreement.jaccard,
        "expected_jaccard": agreement.expected_jaccard, "p": agreement.p,
    }  # fmt: skip


def _own(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    if not all("q" in frame and frame["q"].notna().any() for frame in (left, right)):
        return {}
    first, other = (set(frame.index[frame["q"] < 0.05]) for frame in (left, right))
    agreement = overlap(len(first & other), len(first), len(other), len(left))
    return {
        **{key: float(value) for key, value in agreement._asdict().items()},
        "recall_of_first": agreement.recall_of_first,
        "recall_of_second": agreement.recall_of_second,
        "jaccard": agreement.jaccard,
    }


def _models(first: Any, second: Any) -> dict[str, Any]:
    return {
        f"{side} {role}": model
        for side, result in (("first", first), ("second", second))
        if isinstance(result, ProbeResult)
        for role, model in result.provenance.models.items()
    }
