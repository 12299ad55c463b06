"""What every result of a run says of the selected head or expert, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.results import StoredResult
from dashboards.selection import Selection
from dashboards.views.source import experiment_of


def at(table: pd.DataFrame, selection: Selection, cell: Literal["head", "expert"]) -> pd.DataFrame:
    """The rows of the selected cell; none of a table without such cells."""
    if table.empty or not {"layer", cell} <= set(table):
        return table.iloc[:0]
    return table[(table["layer"] == selection.layer) & (table[cell] == getattr(selection, cell))]


def show_scores(
    cell: Literal["head", "expert"],
    selection: Selection,
    results: Sequence[StoredResult],
    read: Callable[[StoredResult], tuple[pd.DataFrame, str]],
    columns: Sequence[str],
) -> bool:
    """Draw the table, of each result the ``columns`` of ``read``: its table and unit. False where it is empty."""
    rows = []
    for stored in results:
        table, unit = read(stored)
        result = stored.load()
        rows += [
            {"result": stored.name, **{name: row[name] for name in columns if name in row},
             "n prompts": result.provenance.n_prompts or None, "score is": unit, "control is": result.control}
            for row in at(table, selection, cell).to_dict("records")
        ]  # fmt: skip
    if not rows:
        st.caption(f"No result of this run scores this {cell}.")
        return False
    from workbench.tables import with_intervals

    table = pd.DataFrame(rows)
    levels = [(stored, f"'{cell}'" if stored.kind == "WeightDelta" else "") for stored in results]
    listed = "".join(f"    Result.load({str(stored.path)!r}).frame({level}),\n" for stored, level in levels)
    code = f"from workbench.results import Result\n\ntables = [\n{listed}]\n"
    place = f"layer == {selection.layer} and {cell} == {getattr(selection, cell)}"
    code += f"[table.query('{place}') for table in tables]\n"
    provenance = {"run": selection.run, "results": {stored.file: stored.sha256 for stored in results}}
    shown = with_intervals(table).drop(columns=["score is", "control is"])
    again = experiment_of(selection, results)
    panels.table(f"{cell}-scores", table, code, provenance, shown=shown, experiment=again)
    panels.meanings(table)
    return True
