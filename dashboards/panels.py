"""What every panel has: text shown as text, errors as one sentence, and a footer to take the numbers away."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import streamlit as st

from dashboards.plain_figures import without_fetching
from dashboards.readable_figures import with_room
from workbench import glossary
from workbench.csv_text import csv_text
from workbench.errors import UserError, full_gpu_told
from workbench.jsonable import jsonable

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Maker = Callable[[], str]
Pick = Callable[[list[Any]], None]
_WHOLE = 20
"""Tables of so many rows are shown whole; longer ones scroll."""
_TALLEST = 480
"""Pixels of a file that is shown; a longer one scrolls."""
_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+.!|$~:&-])")


def words(text: object) -> str:
    """``text`` so that Markdown shows it letter by letter: no link, picture, formula or tag comes of it."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def said(text: str) -> None:
    """A text that a model may have written, in a box, wrapped, obeyed by nobody."""
    st.code(visible(text) or "(empty)", language=None, wrap_lines=True)


def visible(text: str) -> str:
    """``text`` with control characters other than line breaks and tabs written out."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )


@contextmanager
def errors_shown() -> Iterator[None]:
    """A person's mistake inside ends as one sentence on the page."""
    try:
        with full_gpu_told():
            yield
    except UserError as error:
        st.error(words(error), icon=":material/error:")


def empty(what: str, command: str) -> None:
    """An empty state: what is missing, and the exact command that brings it."""
    st.info(what, icon=":material/info:")
    st.code(command, language="bash", wrap_lines=True)


def meanings(frame: pd.DataFrame) -> None:
    """Below a table of scores what each line measures and beside what, which is too long for a column."""
    for line in frame.drop_duplicates("result").to_dict("records"):
        control = f"; control: {line['control is']}" if line.get("control is") else ""
        st.caption(words(f"{line['result']}: {line['score is']}{control}"))


def table(
    name: str,
    frame: pd.DataFrame,
    python: str,
    provenance: dict[str, Any],
    *,
    shown: pd.DataFrame | None = None,
    experiment: Maker | None = None,
) -> None:
    """A table with its footer; ``shown`` is the same table for reading, ``frame`` the one that is exported."""
    plain = (frame if shown is None else shown).map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    height = "content" if len(plain) <= _WHOLE else "auto"
    st.dataframe(plain, width="stretch", height=height, hide_index=True, alt=name, column_config=explained(plain))
    footer(name, python, frame=frame, provenance=provenance, experiment=experiment)


def explained(frame: pd.DataFrame) -> dict[str, Any]:
    """For ``st.dataframe``: the heading of each known column says on hover what it means."""
    return {column: st.column_config.Column(help=text) for column, text in glossary.meanings(map(str, frame)).items()}


def term(name: str) -> str:
    """The meaning of a term, for the hover text of a widget or caption."""
    return glossary.TERMS[name]


def figure(
    name: str,
    drawn: go.Figure,
    python: str,
    provenance: dict[str, Any],
    *,
    frame: pd.DataFrame | None = None,
    on_pick: Pick | None = None,
    experiment: Maker | None = None,
) -> None:
    """A figure with its footer; pictures that it would fetch are left out.

    ``on_pick`` gets the ``customdata`` of a clicked cell (``selection.picks("layer", "head")`` writes the selection);
    ``frame`` is the table behind the figure, for its CSV.
    """
    with_room(without_fetching(drawn, name))
    drawn.layout.font.family = "Source Sans, Source Sans Pro, sans-serif"
    key = f"chart-{name}"
    picking: dict[str, Any] = {}
    if on_pick is not None:
        drawn.layout.hoverdistance = -1  # a click anywhere in a cell is a click on its marker
        picking = {"on_select": lambda: _picked(key, on_pick), "selection_mode": "points"}
    st.plotly_chart(drawn, width="stretch", theme=None, key=key, alt=_title(drawn, name), **picking)
    footer(name, python, frame=frame, drawn=drawn, provenance=provenance, experiment=experiment)


def _picked(key: str, on_pick: Pick) -> None:
    """A chart's own selection is lost when its data change, so a click is handed on at once."""
    points = st.session_state[key]["selection"]["points"]
    if points and points[0].get("customdata") is not None:
        on_pick(list(points[0]["customdata"]))


def footer(
    name: str,
    python: str,
    *,
    provenance: dict[str, Any],
    frame: pd.DataFrame | None = None,
    drawn: go.Figure | None = None,
    experiment: Maker | None = None,
) -> None:
    """Copy link, CSV, JSON with provenance, standalone HTML, the Python that makes the same, and where there is one
    (``experiment`` makes it) the experiment file. Files are made on the click."""
    with st.container(horizontal=True, gap="small"):
        with st.popover("Link", icon=":material/link:", type="tertiary", key=f"link-{name}"):
            st.caption("This page with everything selected on it:")
            st.code(link(), language=None, wrap_lines=True)
        if frame is not None:
            _button("CSV", name, "csv", lambda: csv_text(frame), "text/csv")
        _button("JSON", name, "json", lambda: _json(name, frame, drawn, provenance), "application/json")
        _button("HTML", name, "html", lambda: _html(name, frame, drawn), "text/html")
        with st.popover("Python", icon=":material/code:", type="tertiary", key=f"python-{name}"):
            st.code(python, language="python")
        if experiment is not None:
            _experiment(name, experiment)


def _experiment(name: str, experiment: Maker) -> None:
    """Made when it is opened: checking a whole experiment is not free."""
    shown = st.popover(
        "Experiment", icon=":material/science:", type="tertiary", key=f"experiment-{name}", on_change="rerun"
    )
    if shown.open:
        with shown:
            st.caption("Makes these results again:  tunescope run experiment.yaml")
            with errors_shown():
                text = experiment()
                st.download_button(
                    "experiment.yaml", text, file_name="experiment.yaml", mime="application/yaml", key=f"yaml-{name}",
                    on_click="ignore", icon=":material/download:",
                )  # fmt: skip
                st.code(text, language="yaml", height=min(_TALLEST, 60 + 21 * text.count("\n")), wrap_lines=True)


def link() -> str:
    """The address of this page with its query parameters; run and pair are named even where they are the default, which
    another run may be tomorrow."""
    held = {name: st.session_state[name] for name in ("run", "pair") if st.session_state.get(name)}
    parameters = urlencode({**held, **st.query_params.to_dict()}, doseq=True)
    place = urlsplit(str(st.context.url or "http://localhost:8501"))
    return urlunsplit(place._replace(path=place.path or "/", query=parameters))


def _button(label: str, name: str, ending: str, make: Any, mime: str) -> None:
    st.download_button(
        label, make, file_name=f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.{ending}", mime=mime,
        key=f"{ending}-{name}", on_click="ignore", type="tertiary", icon=":material/download:",
    )  # fmt: skip


def _json(name: str, frame: pd.DataFrame | None, drawn: go.Figure | None, provenance: dict[str, Any]) -> str:
    made: dict[str, Any] = {"name": name, "provenance": provenance}
    if frame is not None:
        made["rows"] = frame.to_dict("records")
    if drawn is not None:
        from workbench.figures.plain import plain_figure

        made["figure"] = plain_figure(drawn)
    return json.dumps(jsonable(made), indent=2)


def _html(name: str, frame: pd.DataFrame | None, drawn: go.Figure | None) -> str:
    if drawn is not None:
        return str(drawn.to_html(include_plotlyjs=True))
    assert frame is not None
    body = frame.to_html(index=False, escape=True)
    return f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>{body}</html>'


def _title(drawn: go.Figure, name: str) -> str:
    return str(drawn.layout.title.text or name)
