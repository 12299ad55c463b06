"""The first page of a pair: four steps in one line, and what each of them found."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import shorten

import streamlit as st

from dashboards import jobs, panels
from dashboards.model_names import short
from dashboards.selection import current, show_next
from dashboards.steps import changed, keep, turn, where
from dashboards.steps.running import LookRequest, begin, job_of, steps_before
from dashboards.steps.subject import DETAILS, Subject, name_of, subject_of
from tunescope.look.notes import CHANGED, KEEP, STEPS, TURN, WHERE

_DETAIL: dict[str, Callable[[Subject], None]] = {
    CHANGED: changed.show, WHERE: where.show, TURN: turn.show, KEEP: keep.show
}  # fmt: skip
_BADGES = {
    "not run": ("not run", "gray", "radio_button_unchecked"), "running": ("running", "blue", "hourglass_top"),
    "waiting": ("in the queue", "blue", "hourglass_empty"),
    "found": ("found", "green", "check_circle"),
    "nothing beyond the control": ("nothing beyond the control", "orange", "do_not_disturb_on"),
}  # fmt: skip
_LONGEST = 170


def show() -> None:
    """The page."""
    subject = subject_of(current())
    if not subject.base:
        st.title("Look into a pair")
        panels.empty("Open a pair of models here:", "tunescope dashboard BASE TUNED")
        return
    st.header(f"{panels.words(short(subject.base))} → {panels.words(short(subject.tuned, subject.base))}")
    job = job_of(subject)
    busy = job is not None and job.is_active
    if job is not None and not busy:
        _ended(job, subject)
    request = changed.request_of(subject)
    _show_line(subject, request, busy=busy)
    step = _selected(subject)
    st.header(f"{DETAILS[step]} {step}", divider="gray")
    with panels.errors_shown():
        _DETAIL[step](subject)


def _show_line(subject: Subject, request: LookRequest | None, *, busy: bool) -> None:
    """The four cards, each with its state and its Run button."""
    for place, step in zip(st.columns(4), STEPS, strict=True):
        with place, st.container(border=True, height="stretch"):
            label, colour, icon = _badge(subject, step)
            st.markdown(f"**{DETAILS[step]} {step}** :{colour}-badge[:material/{icon}: {label}]")
            note = subject.notes.steps.get(step)
            sentence = " ".join(() if note is None else note.telling()) or _PROMISES[step]
            st.caption(panels.words(shorten(sentence, _LONGEST, placeholder=" …")))
            st.space("stretch")
            with st.container(horizontal=True, gap="small"):
                _run_button(subject, request, step, busy=busy)
                st.button(
                    "Open", key=f"open-{DETAILS[step]}", on_click=_open, args=(step,), type="tertiary",
                    help=f"Show the details of: {step}",
                )  # fmt: skip
    ended = subject.notes.has_ended
    every = [step for step in STEPS if ended or subject.notes.state(step) == "not run"]
    if st.button(
        "Run all four steps again" if ended else "Run all four steps", type="secondary" if ended else "primary",
        icon=":material/play_arrow:", key="run-all", disabled=busy or request is None,
        help="The fast passes, one step after the other, on the prompts chosen above.",
    ):  # fmt: skip
        _begin(subject, every, request)


def _badge(subject: Subject, step: str) -> tuple[str, str, str]:
    """Words, colour and icon of a step's state."""
    state = subject.state(step)
    if step == KEEP and state == "nothing beyond the control":
        return "report only", "gray", "description"
    return _BADGES[state]


_PROMISES = {
    CHANGED: "Both models answer the same prompts; which answers differ, and what rose.",
    WHERE: "Weights, layers and heads that carry the change, beside random ones.",
    TURN: "How much of the tuning, which heads, which direction: each tried, best first.",
    KEEP: "Recipes, report, experiment and the commands that do the same.",
}


def _run_button(subject: Subject, request: LookRequest | None, step: str, *, busy: bool) -> None:
    again = subject.notes.state(step) != "not run"
    reason = (
        "A step of this pair is at work or in the queue: see above."
        if busy
        else "Give prompts first."
        if request is None
        else None
    )
    pressed = st.button(
        "Again" if again else "Run", key=f"run-{DETAILS[step]}", icon=":material/play_arrow:",
        disabled=reason is not None, help=reason or f"{step} Run the fast passes of this step.",
    )  # fmt: skip
    if pressed:
        _begin(subject, steps_before(subject, step), request)


def _begin(subject: Subject, steps: list[str], request: LookRequest | None) -> None:
    if request is None:
        return
    with panels.errors_shown():
        begin(subject, steps, request)
        st.session_state["step"] = DETAILS[steps[0]]
        st.rerun()


def _ended(job: jobs.Job, subject: Subject) -> None:
    """Say how it ended, and show the run that it made."""
    if job.state == "done":
        for run in [job.result] if subject.run is None or str(subject.run.path) != job.result else []:
            from workbench import runs

            show_next(run=name_of(runs.open(run)))
        jobs.desk().clear(job)
        st.rerun()
    words = panels.words(f"{job.stage} {job.said}")
    if job.state == "stopped":
        st.warning(f"{words}. What the steps before found is kept.", icon=":material/stop:")
    else:
        st.error(words, icon=":material/error:")


def _open(step: str) -> None:
    st.session_state["step"] = DETAILS[step]


def _selected(subject: Subject) -> str:
    """The step that the link or a person names; the last that was run, where neither does."""
    linked = st.query_params.get("step")
    numbers = {str(number): step for step, number in DETAILS.items()}
    if linked is not None and linked not in numbers:
        st.warning(panels.words(f"There is no step {linked}: steps go from 1 to 4."))
    if "step" not in st.session_state:
        ran = [step for step in STEPS if subject.notes.state(step) != "not run"]
        first = DETAILS[ran[-1]] if ran and not subject.notes.has_ended else 1
        st.session_state["step"] = DETAILS[numbers[linked]] if linked in numbers else first
    number = int(st.session_state["step"])
    st.query_params["step"] = str(number)
    return STEPS[number - 1]


show()
