"""Expensive work: only on a button; the last result stays on the page, marked stale, until another replaces it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

from dashboards import panels

Asked = TypeVar("Asked")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """A button and what it says."""

    name: str
    """Unique in the app: the key of the button is ``go-name``."""
    label: str = "Run"
    working: str = "Working…"
    empty: str = "Press the button: the result appears here."


def on_button(
    work: Work, asked: Asked, run: Callable[[Asked], Result], *, disabled: bool = False
) -> tuple[Asked, Result] | None:
    """``run(asked)`` when the button is pressed; returns the last inputs and their result, or None before the first.

    ``asked`` compares by value (a frozen dataclass): when it is no longer what the result was made of, the page says
    so. A :class:`workbench.errors.UserError` becomes one sentence and leaves the last result in place.
    """
    held = f"_kept-{work.name}"
    if st.button(work.label, type="primary", icon=":material/play_arrow:", key=f"go-{work.name}", disabled=disabled):
        with panels.told(), st.spinner(work.working, show_time=True):
            st.session_state[held] = (asked, run(asked))
    if held not in st.session_state:
        st.info(work.empty, icon=":material/info:")
        return None
    kept: tuple[Any, Any] = st.session_state[held]
    if kept[0] != asked:
        st.warning(
            f"Below is the result of earlier inputs; press {work.label} for a new one.", icon=":material/history:"
        )
    return kept


def prefilled(key: str, value: Any) -> None:
    """Give the widget ``key`` a value that follows the selection, until a person or a link gives another.

    Call before the widget is drawn.
    """
    state, held = st.session_state, f"_prefilled-{key}"
    if key not in state and held not in state and key in st.query_params:
        state[held] = value  # the link's value stands
        return
    if key not in state or (state.get(held) != value and state[key] == state.get(held)):
        state[key] = value
    state[held] = value
