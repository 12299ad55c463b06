"""A result to show: stored in the run, or computed on its pair when a button is pressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import models, panels
from dashboards.as_experiment import computed_experiment, stored_experiment, written_out
from dashboards.results import StoredResult
from dashboards.selection import Selection, current
from dashboards.state import Opened
from dashboards.work_on_button import Work, on_button
from workbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.pair import ModelPair
    from workbench.progress import Progress
    from workbench.prompts import Prompt, Prompts

LINKED: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}


@dataclass(frozen=True)
class Source:
    """A result, the Python that gives it as ``result``, and what made it."""

    name: str
    result: Any
    python: str
    provenance: dict[str, Any]
    experiment: panels.Maker
    """Makes the experiment file that gives the result."""
    alone: bool = False
    """Whether it is about the selected prompt alone."""

    @classmethod
    def stored(cls, result: StoredResult, selection: Selection) -> Source:
        """Read from the run."""
        again = experiment_of(selection, [result])
        return cls(result.name, result.load(), result.python, result.provenance(), again)


@dataclass(frozen=True)
class Request:
    """What something computed here depends on; equal questions have equal answers."""

    base: str
    tuned: str
    prompts: Prompts
    what: tuple[Any, ...] = ()
    """Layer, head, and whatever else the page asks for."""
    file: str = field(default="", compare=False)
    """Where the prompts lie."""

    def pair(self) -> ModelPair:
        """The models, loaded once for all pages. Raises :class:`UserError` where the run names none."""
        if not self.base:
            raise UserError("This run names no pair of models; open one with  tunescope dashboard BASE TUNED.")
        return models.pair(self.base, self.tuned, dtype=models.quick_dtype(self.base))

    def python(self, number: int | None = None) -> str:
        """``pair`` and ``prompts`` (all, or number ``number`` alone) as a person writes them."""
        written = [row.as_dict() for row in self.prompts]
        rows = f"Prompts.load({self.file!r})" if self.file else f"Prompts.of({written!r})"
        row_slice = "" if number is None else f"[{number}:{number + 1}]"
        dtype = models.quick_dtype(self.base)
        loaded = "" if dtype == "auto" else f", dtype={dtype!r}"
        return (
            "import workbench as wb\nfrom workbench.prompts import Prompts\n\n"
            f"pair = wb.load_pair({self.base!r}, {self.tuned!r}{loaded})\nprompts = {rows}{row_slice}\n"
        )

    def experiment(
        self, name: str, step: dict[str, Any], prompts: dict[str, Any] | None = None, recipe: Any = None
    ) -> str:
        """The experiment file of one step on the pair; without ``prompts`` on all of these."""
        rows = self.rows() if prompts is None else prompts
        return computed_experiment((self.base, self.tuned), rows, name, step, recipe)

    def rows(self, **limits: int) -> dict[str, Any]:
        """All prompts (or ``limit`` of them) as an experiment file names them."""
        named = {"file": str(Path(self.file).resolve())} if self.file else written_out(self.prompts)
        return {**named, **limits}

    def provenance(self) -> dict[str, Any]:
        """For the export of what no result file holds."""
        return {"base": self.base, "tuned": self.tuned, "prompts": self.prompts.hash, "asked": list(self.what)}


@dataclass(frozen=True)
class Probe:
    """How to compute a result that the run lacks."""

    call: Callable[[Request], str]
    """The expression in Python, with ``pair`` and ``prompts``."""
    run: Callable[[Request, Progress], Any]
    step: Callable[[Request], dict[str, Any]]
    """The same as the step of an experiment."""


def opened() -> Selection | None:
    """The selection of a run that can be read; None after the page has said what is missing."""
    selection = current()
    if selection.folder is None:
        panels.empty("There is no run yet. This trains two small models and looks into them:", "tunescope demo")
        return None
    with panels.errors_shown():
        selection.opened()
        return selection
    return None


def request_of(selection: Selection, *what: Any) -> Request | None:
    """The run's pair and prompts; where the run keeps no prompts, those of a text field. None before there is one."""
    from workbench.prompts import Prompts

    base, tuned = pair_of(selection)
    rows = selection.rows()
    if rows is not None and len(rows):
        return Request(
            base, tuned, rows, what, str(selection.folder / selection.about.prompts) if selection.folder else ""
        )
    text = st.text_area(
        "Prompts to look at, one per line", key="look-prompts", height=120, persist_state="session",
        placeholder="This run keeps no prompts: write what the models should read.",
    )  # fmt: skip
    lines = [line for line in text.splitlines() if line.strip()]
    return Request(base, tuned, Prompts.of(lines), what) if lines else None


def pair_of(selection: Selection) -> tuple[str, str]:
    """Base and tuned model: the run's, else those that the dashboard was opened on."""
    opened_on = Opened.from_environment()
    return (selection.base, selection.tuned) if selection.base else (opened_on.base, opened_on.tuned)


def one_of(results: list[StoredResult], label: str, key: str) -> StoredResult | None:
    """The result a person chooses; the only one without asking; None where there is none."""
    if len(results) < 2:
        return results[0] if results else None
    names = {result.name: result for result in results}
    name = st.selectbox(label, list(names), key=key, format_func=panels.visible, width=420, **LINKED)
    return names.get(name, results[0])


SELECTED = "the selected prompt"


def stored_or_computed(
    selection: Selection, request: Request | None, kind: str, probe: Probe, work: Work
) -> Source | None:
    """A stored result of ``kind``; where the run has none, a button that computes it on the run's pair, for the
    selected prompt at once or for all of them; what is asked of a layer is always of all."""
    key = f"result-{work.name}"
    stored = one_of([result for result in selection.results(kind) if has_rows(result)], "Result", key)
    if stored is not None:
        with panels.errors_shown():
            return Source.stored(stored, selection)
        return None
    if request is None:
        return None
    every = f"all {len(request.prompts)} prompts"
    alone = not request.what and len(request.prompts) > 1 and SELECTED == st.segmented_control(
        "Read", [SELECTED, every], default=SELECTED, required=True, key=f"which-{work.name}",
        help="The selected prompt alone takes a moment; only all of them give intervals and a control over prompts.",
    )  # fmt: skip
    if alone:
        number = min(selection.prompt, len(request.prompts) - 1)
        request, work = replace(request, what=(number,)), replace(work, held=f"{work.name}-{number}")
    done = on_button(work, request, probe.run)
    if done is None:
        return None
    of, result = done
    row = of.what[0] if alone and of.what else None
    python = f"import probes\n{of.python(row)}result = {probe.call(of)}\n"
    rows = None if row is None else written_out(of.prompts[row : row + 1])
    return Source(
        work.name, result, python, made(result), lambda: of.experiment(work.name, probe.step(of), rows), alone
    )


def has_rows(result: StoredResult) -> bool:
    """Whether a result says something of single prompts; a lens may keep its means over prompts alone."""
    return result.kind != "LogitLens" or not result.load().cells.empty


def rows_of(request: Request) -> Prompts:
    """What a probe reads: all prompts, or the one that is selected."""
    return request.prompts[request.what[0] : request.what[0] + 1] if request.what else request.prompts


def experiment_of(selection: Selection, results: Sequence[StoredResult]) -> panels.Maker:
    """Makes the experiment file that gives these results of the run."""
    own = [result for result in results if result.run is None]
    if len(results) == 1 and not own:
        elsewhere = replace(
            selection, run=results[0].run.name if results[0].run else "", folder=results[0].run, pair=""
        )
        name = results[0].step or results[0].name.partition(" (")[0]
        return lambda: stored_experiment(elsewhere, [name])
    return lambda: stored_experiment(selection, list(dict.fromkeys(result.step or result.name for result in own)))


def result_table(name: str, source: Source, frame: pd.DataFrame, call: str) -> None:
    """A table of a result for reading, intervals beside their numbers; the exported one is whole."""
    from workbench.tables import with_intervals

    shown = with_intervals(frame.dropna(axis=1, how="all"))
    code = f"{source.python}{call}\n"
    panels.table(name, frame, code, source.provenance, shown=shown, experiment=source.experiment)


def made(result: Any) -> dict[str, Any]:
    """Where a result comes from, as plain values."""
    return asdict(result.provenance)


def prompt_of(request: Request, number: int) -> Prompt:
    """The selected prompt; the last one where there are fewer."""
    return request.prompts[min(number, len(request.prompts) - 1)]


def show_prompt(request: Request, number: int) -> None:
    """The selected prompt as text, with what is known about it."""
    row = prompt_of(request, number)
    facts = [f"Prompt {min(number, len(request.prompts) - 1)} of {len(request.prompts)}"]
    facts += [f"{name} {value}" for name, value in (("label", row.label), ("answer", row.answer)) if value is not None]
    st.caption(panels.words(", ".join(facts)))
    panels.said(str(row))


def steer_link(label: str, **part: str) -> None:
    """A link to the page Steer that fills in this part of the recipe alone; the sidebar's selection goes with it."""
    query = {"recipe": "", **part}
    st.page_link("app_pages/steer.py", label=label, icon=":material/play_circle:", query_params=query)
