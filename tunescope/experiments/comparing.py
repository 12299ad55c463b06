"""The step that puts two results side by side, as the dashboard's page Runs does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

import probes
from probes.cells import label
from probes.headlines import beside
from tunescope.experiments import inline, steps
from tunescope.experiments.step_folder import Outcome, metric_rows
from workbench.errors import UserError

if TYPE_CHECKING:
    from probes.comparison import Comparison
    from probes.results import ProbeResult
    from tunescope.experiments.execute import Bench

UNRANKED = "these scores cannot be ranked against each other"
TOP = 10
"""Cells that enter the long table, the largest differences first; the step's own table has all."""


def compare(step: steps.Compare, bench: Bench) -> Outcome:
    """The scores of both, cell by cell; and how far their rankings agree, where they can be ranked.

    Raises :class:`UserError` for results of two kinds, and for those that score no cells in common.
    """
    first, second = (_result(ref, bench) for ref in (step.first, step.second))
    if type(first) is not type(second):
        kinds = f"{type(first).__name__} and a {type(second).__name__}"
        raise UserError(f"These are a {kinds}: only two results of the same kind are compared.")
    more = _shared_weights(first, second)
    agreement = _agreement(first, second, bench.seed)
    try:
        table = beside(first, second)
    except UserError:
        if not more:
            raise
        return Outcome("the weights that both share", more["overlap"], metric_rows([]))
    rows: list[dict[str, Any]] = [{str(name): cell for name, cell in row.items()} for row in _records(table)]
    lines = [{"of": label(row), "metric": "difference", "estimate": row["difference"]} for row in rows]
    if agreement is None:
        return Outcome(f"{len(table)} cells; {UNRANKED}", table, metric_rows(lines), more=more)
    lines.insert(0, {"of": "all", "metric": "spearman", "estimate": agreement.spearman, "n": float(agreement.n_cells)})
    return Outcome(agreement.summary(), table, metric_rows(lines), agreement, {"agreement": agreement.frame(), **more})


def _result(ref: inline.ResultRef, bench: Bench) -> ProbeResult:
    result = bench.materials.result(ref.file) if ref.file is not None else bench.results(str(ref.from_step))
    if not isinstance(result, probes.ProbeResult):
        raise UserError(f"{ref.file} holds a {type(result).__name__}, which scores no cells; give a probe's result.")
    return result


def _shared_weights(first: Any, second: Any) -> dict[str, pd.DataFrame]:
    """``overlap``: how many weights two grafts share, beside chance; nothing for other results."""
    if not isinstance(first, probes.GraftResult) or "ranks" in (first.level, second.level):
        return {}
    return {"overlap": pd.DataFrame([probes.mask_overlap(first, second).line()])}


def _agreement(first: ProbeResult, second: ProbeResult, seed: int) -> Comparison | None:
    """None where the scores cannot be ranked against each other."""
    try:
        return probes.compare(first, second, seed=seed)
    except UserError:
        return None


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """The first rows as plain values."""
    return table.head(TOP).to_dict("records")
