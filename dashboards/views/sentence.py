"""One plain sentence above a map, made from its numbers."""

from __future__ import annotations

import pandas as pd


def sentence_of(table: pd.DataFrame) -> str:
    """The strongest cell with interval, control and q, and how many cells are beyond their control.

    Args:
        table: A result's cells with ``score``, and where there are ``low``, ``high``, ``control`` and ``q``; empty for
            a table that is no map.
    """
    from probes.cells import label
    from workbench.tables import beyond_control, with_intervals

    if table.empty or "score" not in table or table["score"].isna().all():
        return ""
    best = table.loc[[table["score"].abs().idxmax()]]
    row = {str(name): value for name, value in best.to_dict("records")[0].items()}
    shown = with_intervals(best[[name for name in ("score", "low", "high") if name in best]]).iloc[0]
    sentence = f"Strongest: {label(row)}, {shown['score']}"
    if pd.notna(row.get("control")):
        sentence += f" beside {row['control']:.3g} of its control"
    if pd.notna(row.get("q")):
        sentence += f"; {int(beyond_control(table).sum())} of {len(table)} cells are beyond their control (q < .05)"
    return f"{sentence}."
