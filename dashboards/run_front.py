"""The front of any registered method: its options as a form, its cost, a Run button, and what came of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import jobs, method_form, models, panels
from dashboards.job_journal import Order
from dashboards.method_panel import show_result
from dashboards.pair_form import ENDINGS, pasted, uploaded
from dashboards.results import results_in
from dashboards.selection import Selection
from dashboards.state import known_runs
from dashboards.views.source import pair_of
from workbench.first_batch import Phase
from workbench.methods import Method
from workbench.runs.places import default_home

if TYPE_CHECKING:
    from tunescope.experiments.method_run import MethodCall
    from workbench.progress import Progress
    from workbench.prompts import Prompts

OF_RUN, PASTE, FILE = "of the run", "paste", "file"
_HASH = 16
MOST = 60
"""Prompts that are read unless a person asks for more."""


@dataclass(frozen=True)
class Filled:
    """A form as a person filled it in."""

    method: Method
    base: str
    tuned: str
    options: dict[str, Any]
    prompts: Prompts | None
    limit: int | None

    def call(self, folder: Path) -> MethodCall:
        """What is run; the prompts are written into ``folder``."""
        from tunescope.experiments.method_run import MethodCall

        file = None if self.prompts is None else folder / "prompts.jsonl"
        if file is not None and self.prompts is not None:
            self.prompts.save(file)
        base, tuned = models.places(self.base, self.tuned)
        dtype = models.quick_dtype(base)  # as the four steps load them: the pair of one workspace is of one dtype
        return MethodCall(
            self.method, base, tuned, options=self.options, prompts=file, limit=self.limit, dtype=dtype
        )  # fmt: skip

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal forms."""
        rows = None if self.prompts is None else self.prompts.hash
        return (self.method.name, self.base, self.tuned, repr(sorted(self.options.items())), rows, self.limit)


def front(name: str, selection: Selection, page: str, rows: Prompts | None = None) -> None:
    """Draw a method's front; call it inside :func:`dashboards.panels.errors_shown`.

    Args:
        name: The method, as the registry has it.
        selection: Its run's prompts are offered, and its pair.
        page: The page on which this stands, where the end of the task is told.
        rows: What is offered in place of the run's prompts.

    Raises:
        UserError: An option is not what the method takes, or the prompts cannot be read.
    """
    models.warm().wait("models")
    from workbench.method_index import load_method

    method = load_method(name)
    ended(page, name)
    st.markdown(panels.words(method.summary.replace("``", "")))
    notes = [f"Cost: {method.cost}." if method.cost else "", *(f"From: {paper}." for paper in method.papers)]
    st.caption(panels.words(" ".join(note for note in notes if note)))
    filled = _form(method, selection, page, selection.rows() if rows is None else rows)
    reason = method_form.reason_against(method, (filled.base, filled.tuned), filled.prompts, filled.options)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            "Run", type="primary", icon=":material/play_arrow:", key=f"go-{_at(page, name)}", disabled=bool(reason),
            help=reason or "Runs in the background; the result stays in the workspace of this pair.",
        )  # fmt: skip
        timing = st.button(
            "How long will it take?", type="tertiary", icon=":material/timer:", key=f"time-{_at(page, name)}",
            disabled=bool(reason), help="Loads the models and runs the first batch.",
        )  # fmt: skip
    if reason:
        st.caption(panels.words(reason))
    if pressed:
        begin(filled, page)
        st.rerun()
    elif timing:
        _begin_timing(filled, page)
    _show_timing(filled, page)


def _at(page: str, name: str) -> str:
    """Of the widgets of one front."""
    return "method" if page == "analyses" else f"{page}-{name}"


def _form(method: Method, selection: Selection, page: str, rows: Prompts | None) -> Filled:
    base, tuned = _models(selection, page, method.name)
    prompts, limit = _prompts(method, rows, page)
    return Filled(method, base, tuned, method_form.ask(method), prompts, limit)


def _models(selection: Selection, page: str, name: str) -> tuple[str, str]:
    base, tuned = pair_of(selection)
    left, right = st.columns(2)
    at = _at(page, name)
    base = left.text_input("Base model", base, key=f"{at}-base", persist_state="session")
    tuned = right.text_input("Tuned model or PEFT adapter", tuned, key=f"{at}-tuned", persist_state="session")
    return base.strip(), tuned.strip()


def _prompts(method: Method, rows: Prompts | None, page: str) -> tuple[Prompts | None, int | None]:
    """The prompts of the run, pasted ones or a file, and how many are read at most; None before there are some."""
    if {"prompts", "recording"}.isdisjoint(method.arguments):
        return None, None
    at = _at(page, method.name)
    ways = [*([OF_RUN] if rows is not None and len(rows) else []), PASTE, FILE]
    left, right = st.columns([3, 1])
    way = left.segmented_control("Prompts", ways, key=f"{at}-from", default=ways[0], required=True)
    limit = int(right.number_input("At most", 1, 1_000_000, MOST, key=f"{at}-limit", help="A seeded sample of them."))
    if way == FILE:
        file = st.file_uploader(f"A file: {', '.join(ENDINGS)}", ENDINGS, key=f"{at}-file")
        rows = uploaded(file.name, file.getvalue()) if file is not None else None
    elif way == PASTE:
        text = st.text_area(
            "One a line, or rows of JSON with prompt, answer, label, …", key=f"{at}-prompts", persist_state="session"
        )
        rows = pasted(text) if text.strip() else None
    return rows, limit if rows is not None and limit < len(rows) else None


def begin(filled: Filled, page: str) -> None:
    """Put a method into the queue."""

    def task(progress: Progress) -> str:
        return _computed(filled, progress)

    order = Order("method", {
        "name": filled.method.name, "base": filled.base, "tuned": filled.tuned, "options": filled.options,
        "limit": filled.limit, "page": page,
        "prompts": None if filled.prompts is None else [row.as_dict() for row in filled.prompts],
    })  # fmt: skip
    jobs.desk().begin(filled.method.question, task, key=("run", page, *filled.key), page=page, order=order)


def begin_again(options: dict[str, Any]) -> None:
    """As it was ordered. Raises :class:`UserError` where the method is no longer there."""
    models.warm().wait("models")
    from workbench.method_index import load_method
    from workbench.prompts import Prompts

    rows = None if options["prompts"] is None else Prompts.of(options["prompts"])
    method = load_method(str(options["name"]))
    filled = Filled(method, options["base"], options["tuned"], options["options"], rows, options["limit"])
    begin(filled, str(options["page"]))


def _computed(filled: Filled, progress: Progress) -> str:
    models.warm().wait("models")
    from tunescope.experiments.method_run import checked

    folder = default_home()  # a place of its own for each set: the same call again goes on with the same run
    if filled.prompts is not None:
        folder = folder / ".prompts" / filled.prompts.hash[:_HASH]
        folder.mkdir(parents=True, exist_ok=True)
    run, _ = checked(filled.call(folder)).computed(progress)
    return run.path.name


def _begin_timing(filled: Filled, page: str) -> None:
    def task(_progress: Progress) -> tuple[list[Phase], bool]:
        models.warm().wait("models")
        from tunescope.experiments.method_run import checked

        with tempfile.TemporaryDirectory(prefix="tunescope-prompts-") as folder:
            return checked(filled.call(Path(folder))).timed()

    jobs.desk().begin(f"Timing: {filled.method.question}", task, key=("time", page, *filled.key), is_read=True)
    st.rerun()


def _show_timing(filled: Filled, page: str) -> None:
    job = jobs.desk().latest(("time", page, *filled.key))
    if job is None or job.is_active:
        return
    if job.state != "done":
        st.error(panels.words(job.said), icon=":material/error:")
        return
    phases, whole = job.result
    st.caption(panels.words(cost_line(phases, whole=whole)))


def cost_line(phases: list[Phase], *, whole: bool) -> str:
    """What the first batch tells of the time that all of it takes."""
    timed = [(phase.what, phase.expected) for phase in phases if phase.expected is not None]
    if not timed:
        return "Its first batch told no time: it has no parts that could be counted."
    parts = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in timed)
    rest = "" if whole else "; what comes after them was not reached"
    return f"On this machine, with the models loaded: {parts}{rest}."


def ended(page: str, name: str) -> None:
    """How the last task of this front ended, until another begins."""
    desk = jobs.desk()
    own = [job for job in desk.jobs if isinstance(job.key, tuple) and job.key[:3] == ("run", page, name)]
    if not own or own[-1].is_active:
        return
    job = own[-1]
    if job.state == "done":
        st.success(f"{panels.words(job.name)} Done.", icon=":material/check:")
        folder = known_runs().get(job.result)
        if folder is not None and page == "analyses":
            with panels.errors_shown():
                for stored in results_in(folder):
                    show_result(stored, folder, "new")
    elif job.state == "stopped":
        st.warning(f"{panels.words(job.name)} Stopped.", icon=":material/stop:")
    else:
        st.error(f"{panels.words(job.name)} {panels.words(job.said)}", icon=":material/error:")


def front_if_missing(what: str, name: str, selection: Selection, page: str) -> None:
    """An empty state that can be filled at once: what is missing, and the front of the method that makes it.

    Args:
        what: A sentence.
        name: The method.
        selection: The selection of the page.
        page: The page.
    """
    st.info(what, icon=":material/info:")
    with st.container(border=True):
        front(name, selection, page)


def front_for_more(label: str, name: str, selection: Selection, page: str, rows: Prompts | None = None) -> None:
    """The same folded away, where there is a result already; ``rows`` as for :func:`front`."""
    shown = st.expander(label, icon=":material/play_circle:", on_change="rerun", key=f"more-{page}-{name}")
    if shown.open:
        with shown, panels.errors_shown():
            front(name, selection, page, rows)
