"""Several results in one table: the strongest cell of each, or two results cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from workbench.errors import UserError

_CELLS = ("layer", "head", "expert", "module", "position", "direction", "count")
COLUMNS = ("finding", "strongest", "score", "low", "high", "control", "beyond control", "n prompts", "score is")


def headlines(results: Mapping[str, Any]) -> pd.DataFrame:
    """One row per result that scores cells (name -> result): its strongest cell with interval and control.

    ``beyond control``: q below 0.05; without q, the control outside the interval.
    """
    rows = [_row(name, result) for name, result in results.items()]
    return pd.DataFrame([row for row in rows if row is not None], columns=list(COLUMNS))


def beside(first: Any, second: Any) -> pd.DataFrame:
    """The scores of two results of the same kind, cell by cell, with their intervals: the largest difference first.

    A cell that only one of them has is kept, its difference empty. Raises :class:`UserError` for results that have no
    cells in common to tell apart.
    """
    tables = [result.frame() for result in (first, second)]
    cells = [name for name in _CELLS if all(name in table and table[name].notna().any() for table in tables)]
    if not cells or any(table.duplicated(cells).any() for table in tables):
        raise UserError("These two results do not score the same kind of cell once each, so there is nothing to pair.")
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


def cell_label(row: Mapping[str, Any]) -> str:
    """``L3H5``, ``L3E2``, ``L3 mlp.gate``, ``L3 direction 1``: what a row of a result is about."""
    number = {name: int(row[name]) for name in ("layer", "head", "expert", "direction") if _known(row, name)}
    label = f"L{number['layer']}" if "layer" in number else ""
    if "head" in number:
        return f"{label}H{number['head']}"
    if "expert" in number:
        return f"{label}E{number['expert']}"
    parts = [label]
    if _known(row, "module"):
        parts.append(str(row["module"]))
    if "direction" in number:
        parts.append(f"direction {number['direction']}")
    if _known(row, "position"):
        position = row["position"]
        parts.append(f"position {int(position) if isinstance(position, float) else position}")
    if _known(row, "count"):
        parts.append(f"{int(row['count'])} together")
    return " ".join(part for part in parts if part) or "all"


def _row(name: str, result: Any) -> dict[str, Any] | None:
    table = result.frame()
    if table.empty or not {"score", "low", "high", "control", "q"} <= set(table):
        return None
    if "change" in table and "count" in table:  # a curve: how far the behaviour went, not where it began
        table = table.reindex(table["change"].abs().sort_values(ascending=False, kind="stable").index)
    best = table.iloc[0]
    outside = best["q"] < 0.05 if pd.notna(best["q"]) else not best["low"] <= best["control"] <= best["high"]
    return {
        "finding": name, "strongest": cell_label(best.to_dict()), "score": float(best["score"]),
        "low": float(best["low"]), "high": float(best["high"]), "control": float(best["control"]),
        "beyond control": "yes" if outside else "no", "n prompts": result.provenance.n_prompts or None,
        "score is": result.unit,
    }  # fmt: skip


def _known(row: Mapping[str, Any], name: str) -> bool:
    return name in row and row[name] is not None and not pd.isna(row[name])
