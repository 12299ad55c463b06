"""The server's tasks above every page: progress, time left, place in the queue, Stop, and how each one ended."""

from __future__ import annotations

import streamlit as st

from dashboards import jobs, panels
from dashboards.job_journal import Interrupted
from workbench.errors import UserError

POLL = 1.5
"""Seconds between looks at the queue; each costs the task that runs a moment."""
_MINUTES_FROM = 90
_SEEN = "_tasks-seen"
_REFUSED = "_resume-refused"


def show(page: str) -> None:
    """Draw the tasks; while some are at work the strip keeps itself up to date, and the page is drawn again when one of
    them ends.

    Args:
        page: The page below. A task that has ended is told there and not here, where it is its own.
    """
    desk = jobs.desk()
    _show_interrupted(desk)
    st.session_state[_SEEN] = _states(desk)
    if desk.active:
        _polled()
    for job in desk.jobs:
        if not (job.is_active or job.is_read or job.page == page):
            _show_ended(desk, job)


def _states(desk: jobs.Desk) -> list[tuple[int, str, str]]:
    return [(job.number, job.state, job.stage) for job in desk.jobs]


def _watched() -> None:
    desk = jobs.desk()
    if _states(desk) != st.session_state.get(_SEEN):
        st.rerun()
    for place, job in enumerate(desk.active):
        with st.container(horizontal=True, vertical_alignment="center", key=f"task-{job.number}"):
            if place:
                st.markdown(f"**{panels.words(job.name)}** :gray-badge[number {place + 1} in the queue]")
            else:
                st.progress(job.share, line_of(job))
            if job.stopping:
                st.caption("Stopping after this part…")
            else:
                st.button("Stop", icon=":material/stop:", key=f"stop-{job.number}", on_click=job.stop)


_polled = st.fragment(run_every=POLL)(_watched)


def line_of(job: jobs.Job) -> str:
    """What a running task is at, how far it is, and how long its part will take."""
    name = job.name if not job.stage or job.stage == job.name else f"{job.name}, {job.stage}"
    if job.what == "starting":
        return f"**{panels.words(name)}** loading the models…"
    said = f"**{panels.words(name)}** {panels.words(job.what)}"
    if job.total:
        said += f": {job.done} of {job.total}"
    left = job.seconds_left
    return said if left is None else f"{said}, {_time(left)} left of this part"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"


def _show_ended(desk: jobs.Desk, job: jobs.Job) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key=f"ended-{job.number}"):
        end = "is done." if job.state == "done" else "was stopped." if job.state == "stopped" else f": {job.said}"
        badge = {"done": ":green[:material/check:]", "stopped": ":orange[:material/stop:]"}
        st.markdown(f"{badge.get(job.state, ':red[:material/error:]')} {panels.words(job.name)} {panels.words(end)}")
        if job.page:
            st.page_link(f"app_pages/{job.page}.py", label="Show it", icon=":material/arrow_forward:")
        st.button("Dismiss", key=f"dismiss-{job.number}", type="tertiary", on_click=desk.clear, args=(job,),
                  help=f"Leave out: {panels.visible(job.name)}")  # fmt: skip


def _show_interrupted(desk: jobs.Desk) -> None:
    """What an earlier server was at when it was killed."""
    for number, lost in enumerate(desk.interrupted):
        with st.container(horizontal=True, vertical_alignment="center", key=f"interrupted-{number}"):
            st.markdown(f":orange[:material/warning:] {panels.words(lost.name)}: interrupted, the dashboard ended.")
            if lost.order is not None:
                st.button("Resume", icon=":material/play_arrow:", key=f"resume-{number}", on_click=_resume,
                          args=(desk, lost), help=f"With the same options; what was complete is kept: "
                          f"{panels.visible(lost.name)}")  # fmt: skip
            elif lost.page:
                st.page_link(f"app_pages/{lost.page}.py", label="Start it again", icon=":material/arrow_forward:")
            st.button("Dismiss", key=f"forget-{number}", type="tertiary", on_click=desk.dismiss,
                      args=(lost,), help=f"Leave out: {panels.visible(lost.name)}")  # fmt: skip
    if refused := st.session_state.pop(_REFUSED, ""):
        st.error(panels.words(refused), icon=":material/error:")


def _resume(desk: jobs.Desk, lost: Interrupted) -> None:
    """Put it into the queue; it stays interrupted where it can no longer be begun."""
    from dashboards.resuming import begin_again

    assert lost.order is not None
    try:
        begin_again(lost.order)
        desk.dismiss(lost)
    except UserError as error:
        st.session_state[_REFUSED] = f"{lost.name} cannot go on: {error}"
