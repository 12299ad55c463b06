"""Analyses: every registered method as a question with a form, run on this pair in the background."""

from __future__ import annotations

import streamlit as st

from dashboards import panels
from dashboards.method_panel import show_result
from dashboards.run_front import front
from dashboards.selection import Selection, current
from workbench.errors import UserError
from workbench.method_index import Entry, index


def show() -> None:
    """The page."""
    st.title("Analyses")
    st.caption("Every method as the question that it answers. It runs in the background, and its result is a run.")
    selection = current()
    entry = _question()
    with panels.errors_shown():
        front(entry.name, selection, "analyses")
    _show_stored(selection)
    for point, reason in index().broken.items():
        st.warning(panels.words(f"The plug-in {point} is left out: {reason}."))


def _question() -> Entry:
    """The method that a person chooses, by its question."""
    entries = sorted(
        (entry for entry in index().entries if entry.kind == "probe"), key=lambda entry: (entry.group, entry.name)
    )
    names = {entry.name: entry for entry in entries}
    linked = st.query_params.get("method", "")
    if linked and linked not in names:
        st.warning(panels.words(f"There is no method {linked}; choose one below."))
    if linked in names and "method" not in st.session_state:
        st.session_state["method"] = linked
    name = st.selectbox(
        "Question", list(names), key="method", persist_state="session",
        format_func=lambda key: panels.visible(f"{names[key].group.capitalize()}: {names[key].question}"),
    )  # fmt: skip
    st.query_params["method"] = name
    return names[name]


def _show_stored(selection: Selection) -> None:
    """Every result of the selected run, those of methods without a page of their own too."""
    if selection.folder is None:
        return
    stored = selection.results()
    if not stored:
        return
    st.header("What this run holds")
    names = {result.name: result for result in stored}
    name = st.selectbox("Result", list(names), key="stored-result", format_func=panels.visible)
    try:
        show_result(names.get(name, stored[0]), selection.folder, "stored")
    except UserError as error:
        st.error(panels.words(error), icon=":material/error:")


show()
