"""A page that shows one place opens on the strongest, once, where neither link nor person chose another."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboards.selection import current, opened_on_a_cell, show_next


def strongest_head(table: pd.DataFrame) -> tuple[int, int] | None:
    """Layer and head of the largest score; None where no score is known."""
    if "score" not in table or table["score"].isna().all():
        return None
    best = table.loc[[table["score"].idxmax()]].to_dict("records")[0]
    return int(best["layer"]), int(best["head"])


def open_on_the_strongest(table: pd.DataFrame) -> None:
    """Select the strongest head of ``table`` and draw the page again; once per run of a tab.

    Args:
        table: Heads by layer, head and score.
    """
    selection, place = current(), strongest_head(table)
    done = f"_strongest-{selection.folder}"
    if place is None or done in st.session_state:
        return
    st.session_state[done] = True
    is_chosen = opened_on_a_cell() or (selection.layer, selection.head) != (0, 0)
    if not is_chosen and place != (0, 0):
        show_next(layer=place[0], head=place[1])
        st.rerun()
