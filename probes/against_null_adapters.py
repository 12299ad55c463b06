"""Any probe of an adapter pair against null adapters: is its score more than any adapter of that size would get?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import call_settings
from probes.results import ProbeResult
from workbench.cells import COLUMNS
from workbench.cluster.splitting import in_parts
from workbench.errors import UserError
from workbench.models.null_adapters import KINDS, Null, check_nullable, null_adapter
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.stats.fdr import q_values

NULLS = 19
"""The fewest with which a place can be at p = .05."""


@dataclass(frozen=True, kw_only=True)
class AgainstNulls(ProbeResult):
    """A probe's scores among those of null adapters.

    ``table``: the probe's own cells, score, low and high; ``control``: the nulls' mean score of the cell, with their
    range ``null_low`` to ``null_high``; ``p``: the score's place among the nulls' (the adapter counted in) and ``q``
    over the cells. With n nulls no p is below 1 / (n + 1).
    """

    best: float
    """The largest score."""
    p_best: float
    """Its place among the nulls' largest scores: one test, however many cells there are."""
    nulls: pd.DataFrame
    """null, best: the largest score of each null adapter."""
    title: ClassVar[str] = "Against null adapters"
    unit: ClassVar[str] = "score of the probe"

    def summary(self) -> str:
        """Whether the adapter stands out among its nulls."""
        return (
            f"Largest score {self.best:.3g}; of {len(self.nulls)} null adapters the largest is "
            f"{self.nulls['best'].max():.3g} (p = {self.p_best:.2g}); {int((self.table['q'] < 0.05).sum())} of "
            f"{len(self.table)} cells at q < 0.05; {self.control}"
        )

    def figure(self) -> go.Figure:
        """The nulls' largest scores, and the adapter's."""
        drawn = go.Figure(go.Histogram(x=self.nulls["best"], marker_color="#9aa5ab", name="null adapters"))
        drawn.add_vline(x=self.best, line_color="#0b6e8f", annotation_text="the adapter")
        drawn.update_layout(title=f"{self.title}: p = {self.p_best:.2g}", xaxis_title="largest score")
        return drawn


def against_nulls(
    probe: Callable[..., ProbeResult],
    pair: ModelPair,
    prompts: Any = None,
    *,
    nulls: int | Literal["random", "shuffled"] = NULLS,
    null: Null = "random",
    null_seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> AgainstNulls:
    """Run a probe on an adapter pair, then on null adapters of the same norm in every module, and compare.

    Args:
        probe: A probe of a pair, such as ``probes.logit_lens``; larger scores must mean more.
        pair: A base and a plain LoRA on it; the adapter is back bit for bit afterwards.
        prompts: What the probe takes behind the pair; None: nothing.
        nulls: How many null adapters; ``"random"`` or ``"shuffled"``: 19 of that kind.
        null: ``random`` factors, or the adapter's own numbers ``shuffled``.
        null_seed: Of the first null; the others count on.
        progress: A bar over the nulls.
        options: The probe's own options.

    Returns:
        An :class:`AgainstNulls`. A random adapter stands at a random place among its nulls. Where a probe's cells
        differ from one adapter to the next (the largest edges, say), every cell is set beside the largest of each.

    Raises:
        UserError: The pair has no adapter, or there are too few nulls.

    Example:
        ``probes.against_nulls(probes.logit_lens, pair, prompts, nulls=99).p_best``
    """
    count, kind = (NULLS, nulls) if nulls in KINDS else (nulls, null)
    if not isinstance(count, int) or isinstance(count, bool) or count < NULLS:
        raise UserError(f"nulls={nulls!r}: give {NULLS} or more, as fewer cannot reach p = .05, or one of {KINDS}.")
    check_nullable(pair)
    inputs = () if prompts is None else (prompts,)
    result = probe(pair, *inputs, **options)
    scores = _by_cell(*_scored(result))
    bar = progress or Silent()
    bar.start("null adapters", count)
    drawn: list[pd.Series] = []

    def take(_seed: int, scored: tuple[list[tuple[Any, ...]], list[float]]) -> None:
        drawn.append(_by_cell(*scored))
        bar.advance()

    of_null = partial(_of_null, partial(probe, **options), pair, inputs, kind)
    seeds = range(null_seed, null_seed + count)
    in_parts(of_null, seeds, take, content=lambda seed: ["null adapter", kind, seed])
    bar.finish()
    bests = np.array([np.nanmax(values) for values in drawn])
    same = scores.index.is_unique and all(set(values.index) == set(scores.index) for values in drawn)
    others = np.stack(
        [values.reindex(scores.index) if same else np.full(len(scores), np.nanmax(values)) for values in drawn]
    )
    own = scores.to_numpy(dtype=float)
    table = result.frame().drop(columns=["control", "q", "p"], errors="ignore")
    p = (1 + (others >= own).sum(0)) / (1 + count)
    more = call_settings(None, probe=probe, nulls=nulls, null=null, null_seed=null_seed)
    return AgainstNulls(
        table=table.assign(control=others.mean(0), null_low=others.min(0), null_high=others.max(0), p=p, q=q_values(p)),
        control=f"{count} {kind} adapters of the same norm in every module"
        + ("" if same else "; their cells differ, so the largest score of each stands for all"),
        provenance=dataclasses.replace(
            result.provenance, probe="against_nulls", settings={**result.provenance.settings, **more}
        ),
        best=float(np.nanmax(own)),
        p_best=float((1 + (bests >= np.nanmax(own)).sum()) / (1 + count)),
        nulls=pd.DataFrame({"null": range(count), "best": bests}),
    )


def _of_null(
    probe: Callable[..., ProbeResult], pair: ModelPair, inputs: tuple[Any, ...], kind: Null, seed: int
) -> tuple[list[tuple[Any, ...]], list[float]]:
    with null_adapter(pair, seed, kind) as stand_in:
        return _scored(probe(stand_in, *inputs))


def _scored(result: ProbeResult) -> tuple[list[tuple[Any, ...]], list[float]]:
    """The cells of a result, in the order of its frame, and their scores."""
    frame = result.frame()
    cell = [name for name in COLUMNS if name in frame and frame[name].notna().any()]
    keys = frame[cell].astype(object).fillna("").itertuples(index=False, name=None) if cell else zip(frame.index)
    return list(keys), frame["score"].to_numpy(dtype=float).tolist()


def _by_cell(cells: list[tuple[Any, ...]], scores: list[float]) -> pd.Series:
    return pd.Series(scores, index=pd.Index(cells, tupleize_cols=False), dtype=float)
