"""Analyses: every registered method as a question with a form, run on this pair in the background."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import jobs, method_form, models, panels
from dashboards.method_panel import show_result
from dashboards.pair_form import ENDINGS, pasted, uploaded
from dashboards.results import results_in
from dashboards.selection import Selection, current
from dashboards.state import known_runs
from dashboards.views.source import pair_of
from workbench.errors import UserError
from workbench.method_index import Entry, index
from workbench.methods import Method


def show() -> None:
    """The page."""
    st.title("Analyses")
    st.caption("Every method as the question that it answers. It runs in the background, and its result is a run.")
    chosen = current()
    job = jobs.desk().job
    if job is not None and job.state == "running":
        _watch()
    elif job is not None:
        _ended(job)
    entry = _question()
    with panels.told():
        _ask(entry, chosen, busy=job is not None and job.state == "running")
    _show_stored(chosen)
    for point, reason in index().broken.items():
        st.warning(panels.words(f"The plug-in {point} is left out: {reason}."))


def _question() -> Entry:
    """The method that a person chooses, by its question."""
    entries = sorted((one for one in index().entries if one.kind == "probe"), key=lambda one: (one.group, one.name))
    names = {entry.name: entry for entry in entries}
    linked = st.query_params.get("method", "")
    if linked and linked not in names:
        st.warning(panels.words(f"There is no method {linked}; choose one below."))
    if linked in names and "method" not in st.session_state:
        st.session_state["method"] = linked
    name = st.selectbox(
        "Question", list(names), key="method", persist_state="session",
        format_func=lambda one: panels.visible(f"{names[one].group.capitalize()}: {names[one].question}"),
    )  # fmt: skip
    st.query_params["method"] = name
    return names[name]


def _ask(entry: Entry, chosen: Selection, *, busy: bool) -> None:
    """The form of a method, and its Run button; greyed out with the reason where it cannot run."""
    models.warm().wait("results")
    from workbench.method_index import load_method

    method = load_method(entry.name)
    st.markdown(panels.words(method.summary))
    notes = [f"Cost: {method.cost}." if method.cost else "", *(f"From: {paper}." for paper in method.papers)]
    st.caption(panels.words(" ".join(note for note in notes if note)))
    base, tuned = _models(chosen)
    prompts = _prompts(method, chosen)
    options = method_form.ask(method)
    reason = "Another task is running." if busy else method_form.missing(method, base, prompts is not None)
    if st.button("Run", type="primary", icon=":material/play_arrow:", key="go-method", disabled=bool(reason)):
        _begin(method, base, tuned, prompts, options)
        st.rerun()
    if reason:
        st.caption(panels.words(reason))


def _models(chosen: Selection) -> tuple[str, str]:
    base, tuned = pair_of(chosen)
    left, right = st.columns(2)
    with left:
        base = st.text_input("Base model", base, key="method-base", persist_state="session")
    with right:
        tuned = st.text_input("Tuned model or PEFT adapter", tuned, key="method-tuned", persist_state="session")
    return base.strip(), tuned.strip()


def _prompts(method: Method, chosen: Selection) -> Any:
    """The prompts of the run, pasted ones or a file; None before there are some."""
    if {"prompts", "recording"}.isdisjoint(method.arguments):
        return None
    rows = chosen.rows()
    ways = [*(["of the run"] if rows is not None and len(rows) else []), "paste", "file"]
    way = st.segmented_control("Prompts", ways, key="method-from", default=ways[0], required=True)
    if way == "of the run":
        return rows
    if way == "file":
        file = st.file_uploader(f"A file: {', '.join(ENDINGS)}", ENDINGS, key="method-file")
        return uploaded(file.name, file.getvalue()) if file is not None else None
    text = st.text_area(
        "One a line, or rows of JSON with prompt, answer, label, …", key="method-prompts", persist_state="session"
    )
    return pasted(text) if text.strip() else None


def _begin(method: Method, base: str, tuned: str, prompts: Any, options: dict[str, Any]) -> None:
    from tunescope.experiments.method_run import MethodCall, checked

    def task(progress: Any) -> str:
        models.warm().wait("models")
        places = models.places(base, tuned)
        with tempfile.TemporaryDirectory(prefix="tunescope-prompts-") as folder:
            file = None if prompts is None else Path(folder) / "prompts.jsonl"
            if file is not None:
                prompts.save(file)
            run, _ = checked(MethodCall(method, *places, options=options, prompts=file)).computed(progress)
        return run.path.name

    jobs.desk().begin(method.question, task)


def _watched() -> None:
    job = jobs.desk().job
    if job is None or job.state != "running":
        st.rerun()
    assert job is not None
    st.subheader(panels.words(job.name))
    told = f"{panels.words(job.what)}: {job.done} of {job.total}" if job.total else "Loading both models…"
    st.progress(job.share, told)
    if job.stopping:
        st.info("Stopping after this step…", icon=":material/hourglass:")
    elif st.button("Stop", icon=":material/stop:", key="stop-method"):
        job.stop()
        st.rerun(scope="fragment")
    st.caption("You may look at other pages meanwhile; it goes on.")


def _ended(job: jobs.Job) -> None:
    if job.state == "done" and isinstance(job.result, str):
        st.success(f"{panels.words(job.name)} Done.", icon=":material/check:")
        folder = known_runs().get(job.result)
        if folder is not None:
            with panels.told():
                for stored in results_in(folder):
                    show_result(stored, folder, "new")
    elif job.state == "stopped":
        st.warning(f"{panels.words(job.name)} Stopped.", icon=":material/stop:")
    elif job.state == "failed":
        st.error(f"{panels.words(job.name)} {panels.words(job.said)}", icon=":material/error:")


def _show_stored(chosen: Selection) -> None:
    """Every result of the selected run, those of methods without a page of their own too."""
    if chosen.folder is None:
        return
    stored = chosen.results()
    if not stored:
        return
    st.header("What this run holds")
    names = {one.name: one for one in stored}
    name = st.selectbox("Result", list(names), key="stored-result", format_func=panels.visible)
    try:
        show_result(names.get(name, stored[0]), chosen.folder, "stored")
    except UserError as error:
        st.error(panels.words(error), icon=":material/error:")


_watch = st.fragment(run_every=1.0)(_watched)
show()
