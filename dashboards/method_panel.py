"""The default panel of any result: its sentence, figure and table, and the call that makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import panels
from dashboards.results import StoredResult
from workbench import runs
from workbench.errors import UserError
from workbench.tables import with_intervals


def show_result(stored: StoredResult, folder: Path, place: str) -> None:
    """Draw a result of the run in ``folder``; ``place`` tells its widgets from those of others on the page.

    Raises:
        UserError: The result cannot be read.
    """
    from tunescope.experiments.call_forms import caution_of

    result = stored.load()
    st.markdown(f"**{panels.words(result.title)}**: {panels.words(result.summary())}")
    control = getattr(result, "control", "")
    if control:
        st.caption(panels.words(f"Control: {control}. {caution_of(result.provenance)}".strip()))
    made, name = stored.provenance(), f"{place}-{stored.sha256[:8]}"
    frame = result.frame()
    if hasattr(result, "figure"):
        panels.figure(name, result.figure(), f"{stored.python}result.figure().show()\n", made, frame=frame)
    shown = with_intervals(frame.dropna(axis=1, how="all"))
    panels.table(f"{name}-table", frame, f"{stored.python}result.frame()\n", made, shown=shown)
    _show_call(result, folder, name)


def _show_call(result: Any, folder: Path, name: str) -> None:
    """The same as Python, command and experiment."""
    from tunescope.experiments.call_forms import call_forms

    shown = st.expander("The same as Python, command and experiment", icon=":material/code:", on_change="rerun",
                        key=f"call-{name}")  # fmt: skip
    if not shown.open:
        return
    with shown:
        config = runs.open(folder).config
        try:
            forms = call_forms(
                result.provenance, base=_name(config.get("base"), "./base"),
                tuned=_name(config.get("tuned"), "./tuned"), prompts=str(folder / "prompts" / "prompts.jsonl"),
            )  # fmt: skip
        except UserError as error:
            st.caption(panels.words(error))
            return
        st.code(forms.python, language="python")
        st.code(forms.command, language="bash", wrap_lines=True)
        st.code(forms.yaml, language="yaml")


def _name(model: Any, otherwise: str) -> str:
    name = model.get("name") if isinstance(model, dict) else model
    return name if isinstance(name, str) and name else otherwise
