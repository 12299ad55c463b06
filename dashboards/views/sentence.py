"""One plain sentence above a map, made from its numbers."""

from __future__ import annotations

import pandas as pd


def sentence_of(table: pd.DataFrame) -> str:
    """The strongest cell with interval and control, one further below 0, and how many cells are beyond their control.

    Args:
        table: A result's cells with ``score``, and where there are ``low``, ``high``, ``control`` and ``q``; empty for
            a table that is no map.
    """
    from workbench.tables import beyond_control

    if table.empty or "score" not in table or table["score"].isna().all():
        return ""
    sentence = f"Strongest: {_cell(table, int(table['score'].argmax()))}"
    if -table["score"].min() > table["score"].max():
        sentence += f"; furthest below 0: {_cell(table, int(table['score'].argmin()))}"
    if "q" in table and table["q"].notna().any():
        sentence += f"; {int(beyond_control(table).sum())} of {len(table)} cells are beyond their control (q < .05)"
    return f"{sentence}."


def _cell(table: pd.DataFrame, position: int) -> str:
    from probes.cells import label
    from workbench.tables import with_intervals

    best = table.iloc[[position]]
    row = {str(name): value for name, value in best.to_dict("records")[0].items()}
    shown = with_intervals(best[[name for name in ("score", "low", "high") if name in best]]).iloc[0]
    control = f" beside {row['control']:.3g} of its control" if pd.notna(row.get("control")) else ""
    return f"{label(row)}, {shown['score']}{control}"
