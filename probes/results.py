"""What every probe returns: a table of scores with control and interval, its origin and its cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go

from workbench.cells import COLUMNS, label
from workbench.figures.heads import head_heatmap
from workbench.figures.series import labelled_points
from workbench.figures.weights import cell_map
from workbench.results import Provenance, Result

__all__ = ["SHARED", "ProbeResult", "Provenance", "sorted_frame"]

SHARED = ("score", "low", "high", "control", "q")


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """The common part of all results; a probe adds its own fields (tensors, tables, numbers, text, dicts).

    ``table`` has one row per cell: ``layer`` and others of the columns of :class:`workbench.cells.Cell` (``head``,
    ``expert``, ``site``, ``module``, ``position``, ...) name it; ``score`` with its 95 % interval ``low``, ``high``;
    ``control`` is what the control scored there (its mean over draws); ``q`` the false-discovery rate. The field
    ``control`` says in words what the control is.
    """

    control: str

    title: ClassVar[str] = "Probe"
    unit: ClassVar[str] = "score"

    def frame(self) -> pd.DataFrame:
        """The table with the shared columns first, best score first; ties keep their order."""
        return sorted_frame(self.table)

    def figure(self) -> go.Figure:
        """A map of layers and heads or of layers and modules, where the table has these columns; else every cell as a
        point with its interval, beside its control. A probe that shows something else draws its own."""
        if {"layer", "head"} <= set(self.table):
            return head_heatmap(self.table, title=self.title, score=self.unit)
        if {"layer", "module"} <= set(self.table):
            return cell_map(self.table, "module", title=self.title, unit=self.unit)
        named = self.table.assign(cell=[label(row) for row in self.table.to_dict("records")])
        return labelled_points(named, "cell", title=self.title, unit=self.unit)

    def to_json(self) -> str:
        """The sorted table, the control and the provenance as JSON with plain lists (NaN becomes null)."""
        return json.dumps({"probe": self.title, "control": self.control, **self._plain(self.frame())}, default=str)

    def summary(self) -> str:
        """One line for people; a probe may say more."""
        return f"{len(self.table)} cells, {self.unit}; control: {self.control}"


def sorted_frame(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the shared columns first (added where absent), best score first; ties keep their order."""
    cell = [name for name in COLUMNS if name in table or name == "layer"]
    columns = [*cell, *SHARED, *(name for name in table if name not in {*cell, *SHARED})]
    return table.reindex(columns=columns).sort_values("score", ascending=False, kind="stable", ignore_index=True)
