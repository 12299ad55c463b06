"""Every way to turn the behaviour off, compared: run from here, shown as rows, each a click away from the chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboards import panels, run_front
from dashboards.recipe_parts import Part, TurnedOff
from dashboards.selection import current
from dashboards.steps.subject import Subject
from dashboards.views.source import one_of
from dashboards.work_on_button import prefilled
from workbench.tables import with_intervals

if TYPE_CHECKING:
    from dashboards.results import StoredResult
    from workbench.prompts import Prompts

METHOD, KIND = "ways-to-turn", "WaysToTurn"
_MODELS = ("base", "tuned")
"""Lines of the comparison that are the models as they are."""


def show(subject: Subject) -> dict[str, tuple[Part, str]]:
    """The comparison, where there is one, and the front of the method that makes it.

    Returns:
        Way -> how it is made, and the side that it acts on; best first.
    """
    selection = current()
    st.subheader("All ways to turn it off, compared")
    stored = one_of(selection.results(KIND), "Comparison", "ways-result")
    parts: dict[str, tuple[Part, str]] = {}
    if stored is not None:
        with panels.errors_shown():
            parts = _show_stored(stored)
    prefilled(f"option-{METHOD}-behaviour", subject.notes.behaviour or "")
    label = "Compare again" if parts else "Compare every way: parts of the update, direction, offset, layers, heads"
    run_front.front_for_more(label, METHOD, selection, "look", in_two_classes(selection.rows()))
    if not st.session_state.get(f"more-look-{METHOD}"):
        run_front.ended("look", METHOD)
    return parts


def in_two_classes(rows: Prompts | None) -> Prompts | None:
    """The rows as the method takes them: their labels are left out unless there are two of them, and each row then
    belongs to the class that the tuned model's answer shows."""
    labels = {row.label for row in rows or ()}
    if rows is None or (None not in labels and len(labels) == 2):
        return rows
    from workbench.prompts import Prompts

    return Prompts.of([{name: cell for name, cell in row.as_dict().items() if name != "label"} for row in rows])


def rows_of(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a person reads it: best first, the models as they are last."""
    tuned = float(table.loc[table["way"] == "tuned", "residual"].iloc[0])
    ordered = table.assign(is_model=table["way"].isin(_MODELS), cost=table["residual"] + table["kl_tuned"])
    ordered = ordered.sort_values(["is_model", "cost"], kind="stable", ignore_index=True)
    return pd.DataFrame({
        "way": ordered["way"], "what": ordered["what"], "left": ordered["residual"],
        "left_low": ordered["residual_low"], "left_high": ordered["residual_high"],
        "random": tuned - ordered["control"], "q": ordered["q"], "n": ordered["n"], "others moved": ordered["kl_tuned"],
        "others moved_low": ordered["kl_tuned_low"], "others moved_high": ordered["kl_tuned_high"],
        "perplexity": ordered["perplexity"], "search passes": ordered["search_passes"].astype(int),
        "slowdown": ordered["slowdown"].round(2),
    }).dropna(axis=1, how="all")  # fmt: skip


def _show_stored(stored: StoredResult) -> dict[str, tuple[Part, str]]:
    result = stored.load()
    st.markdown(f"**{panels.words(result.summary())}.**")
    ordered = rows_of(result.table)
    shown, names = with_intervals(ordered), ordered["way"].tolist()

    def pick() -> None:
        rows = st.session_state["ways-table"]["selection"]["rows"]
        if rows and names[rows[0]] not in _MODELS:
            st.session_state["chat-recipe"] = names[rows[0]]

    st.dataframe(
        shown, width="stretch", height="content", hide_index=True, key="ways-table", on_select=pick,
        selection_mode="single-row", column_config=panels.explained(shown), alt="All ways to turn the behaviour off",
    )  # fmt: skip
    st.caption("On prompts that chose none of them. A click on a row takes it into the chat.")
    panels.figure(
        "ways", result.figure(), f"{stored.python}result.figure().show()\n", stored.provenance(), frame=result.table
    )
    sides = dict(zip(result.table["way"], result.table["on"], strict=True))
    return {name: (TurnedOff(str(stored.path), name), sides[name]) for name in names if name not in _MODELS}
