"""Several results in one table: the strongest cell of each, or two results cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from probes.cells import columns_of, label
from workbench.errors import UserError
from workbench.tables import beyond_control

COLUMNS = ("finding", "strongest", "score", "low", "high", "control", "beyond control", "n prompts", "score is")


def headlines(results: Mapping[str, Any]) -> pd.DataFrame:
    """One row per result that scores cells (name -> result): its strongest cell with interval and control.

    ``beyond control``: see :func:`workbench.tables.beyond_control`.
    """
    rows = [_row(name, result) for name, result in results.items()]
    return pd.DataFrame([row for row in rows if row is not None], columns=list(COLUMNS))


def beside(first: Any, second: Any) -> pd.DataFrame:
    """The scores of two results of the same kind, cell by cell, with their intervals: the largest difference first.

    A cell that only one of them has is kept, its difference empty. Raises :class:`UserError` for results that have no
    cells in common to tell apart.
    """
    tables = [result.frame() for result in (first, second)]
    cells = columns_of(*tables)
    if not cells:
        raise UserError("These two results have no kind of cell in common, so there is nothing to pair.")
    if any(table.duplicated(cells).any() for table in tables):
        raise UserError(
            f"By {', '.join(cells)} these two results do not score each cell once, so there is nothing to pair: give "
            "results of the same kind of cell."
        )
    numbers = ["score", "low", "high"]
    left, right = (table[[*cells, *numbers]] for table in tables)
    both = left.merge(right, on=cells, how="outer", suffixes=(" first", " second"))
    renamed = both.rename(columns={
        f"{name} {which}": which if name == "score" else f"{which}_{name}"
        for name in numbers for which in ("first", "second")
    })  # fmt: skip
    renamed["difference"] = renamed["second"] - renamed["first"]
    order = renamed["difference"].abs().sort_values(ascending=False, kind="stable").index
    return renamed.reindex(order).reset_index(drop=True)


def _row(name: str, result: Any) -> dict[str, Any] | None:
    best = _reported(result)
    if best is None:
        return None
    outside = bool(beyond_control(best.to_frame().T.infer_objects()).iloc[0])
    return {
        "finding": name, "strongest": label(best.to_dict()), "score": float(best["score"]),
        "low": float(best["low"]), "high": float(best["high"]), "control": float(best["control"]),
        "beyond control": "yes" if outside else "no", "n prompts": best.get("n") or result.provenance.n_prompts or None,
        "score is": result.unit,
    }  # fmt: skip


def _reported(result: Any) -> pd.Series | None:
    """The line that speaks for a result: what it reports of itself, else its strongest cell."""
    if hasattr(result, "reported"):
        return pd.Series(result.reported())
    table = result.frame()
    if table.empty or not {"score", "low", "high", "control", "q"} <= set(table):
        return None
    if "change" in table and "count" in table:  # a curve: how far the behaviour went, not where it began
        table = table.reindex(table["change"].abs().sort_values(ascending=False, kind="stable").index)
    return table.drop(columns="n", errors="ignore").iloc[0]
