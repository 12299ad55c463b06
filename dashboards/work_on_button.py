"""Expensive work: only on a button; the last result stays on the page, marked stale, until another replaces it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

from dashboards import jobs, panels
from workbench.progress import Progress

Request = TypeVar("Request")
Result = TypeVar("Result")
PATIENCE = 2.0
"""Seconds for which a page waits for what it asked; longer work is shown with its progress above the page."""


@dataclass(frozen=True)
class Work:
    """A button and what it says."""

    name: str
    """Unique in the app: the key of the button is ``go-name``."""
    label: str = "Run"
    working: str = "Working…"
    empty: str = "Press the button: the result appears here."
    held: str = ""
    """Where the page keeps the result; of the name, unless there are several."""


def on_button(
    work: Work, request: Request, run: Callable[[Request, Progress], Result], *, disabled: bool = False
) -> tuple[Request, Result] | None:
    """``run(request, progress)`` when the button is pressed; returns the last inputs and their result, or None before
    the first.

    It runs in the server's queue, so that it goes on while a person looks at other pages or reloads this one; a quick
    one is waited for. ``request`` compares by value (a frozen dataclass): when it is no longer what the result was made
    of, the page says so. A :class:`workbench.errors.UserError` becomes one sentence and leaves the last result in
    place.
    """
    place = work.held or work.name
    held, at_work, state = f"_kept-{place}", f"_at-work-{place}", st.session_state
    desk = jobs.desk()
    if st.button(work.label, type="primary", icon=":material/play_arrow:", key=f"go-{work.name}", disabled=disabled):
        with st.spinner(work.working, show_time=True):
            job = desk.begin(work.label, lambda bar: run(request, bar), key=(work.name, request), is_read=True)
            state[at_work] = (request, job)
            job.wait(PATIENCE)
        if job.is_active:
            st.rerun()
    _take(desk, work, request, held, at_work)
    if held not in state:
        if at_work not in state:
            st.info(work.empty, icon=":material/info:")
        return None
    last: tuple[Any, Any] = state[held]
    if last[0] != request:
        st.warning(
            f"Below is the result of earlier inputs; press {work.label} for a new one.", icon=":material/history:"
        )
    return last


def _take(desk: jobs.Desk, work: Work, request: Any, held: str, at_work: str) -> None:
    """Put the result of a task that has ended where the page keeps it; say how far one is that has not."""
    state = st.session_state
    if at_work not in state:  # after a reload, or in another tab, the server still knows it
        job = desk.latest((work.name, request))
        if job is None or not (job.is_active or (job.state == "done" and held not in state)):
            return
        state[at_work] = (request, job)
    begun, job = state[at_work]
    if job.is_active:
        place = desk.place(job)
        st.caption(f"In the queue, {place} before it." if place else work.working)
        return
    del state[at_work]
    if job.state == "done":
        state[held] = (begun, job.result)
    elif job.state == "stopped":
        st.warning("Stopped.", icon=":material/stop:")
    else:
        st.error(panels.words(job.said), icon=":material/error:")


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
