"""What every panel has: text shown as text, errors as one sentence, and a footer to take the numbers away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import streamlit as st

from workbench.errors import UserError
from workbench.jsonable import jsonable

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

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
def told() -> Iterator[None]:
    """A person's mistake inside ends as one sentence on the page."""
    try:
        yield
    except UserError as error:
        st.error(words(error), icon=":material/error:")


def empty(what: str, command: str) -> None:
    """An empty state: what is missing, and the exact command that brings it."""
    st.info(what, icon=":material/info:")
    st.code(command, language="bash")


def table(name: str, frame: pd.DataFrame, python: str, provenance: dict[str, Any]) -> None:
    """A table with its footer."""
    shown = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    st.dataframe(shown, width="stretch", hide_index=True, alt=name)
    footer(name, python, frame=frame, provenance=provenance)


def figure(name: str, drawn: go.Figure, python: str, provenance: dict[str, Any]) -> None:
    """A figure with its footer; pictures that it would fetch are left out."""
    drawn.layout.images = []
    st.plotly_chart(drawn, width="stretch", theme=None, key=f"chart-{name}", alt=_title(drawn, name))
    footer(name, python, drawn=drawn, provenance=provenance)


def footer(
    name: str,
    python: str,
    *,
    provenance: dict[str, Any],
    frame: pd.DataFrame | None = None,
    drawn: go.Figure | None = None,
) -> None:
    """CSV, JSON with provenance, standalone HTML, and the Python that makes the same. Files are made on the click."""
    with st.container(horizontal=True, gap="small"):
        if frame is not None:
            _button("CSV", name, "csv", lambda: frame.to_csv(index=False), "text/csv")
        _button("JSON", name, "json", lambda: _json(name, frame, drawn, provenance), "application/json")
        _button("HTML", name, "html", lambda: _html(name, frame, drawn), "text/html")
        with st.popover("Copy as Python", icon=":material/code:", type="tertiary"):
            st.code(python, language="python")


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
        made["figure"] = json.loads(drawn.to_json())
    return json.dumps(jsonable(made), indent=2)


def _html(name: str, frame: pd.DataFrame | None, drawn: go.Figure | None) -> str:
    if drawn is not None:
        return str(drawn.to_html(include_plotlyjs=True))
    assert frame is not None
    body = frame.to_html(index=False, escape=True)
    return f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>{body}</html>'


def _title(drawn: go.Figure, name: str) -> str:
    return str(drawn.layout.title.text or name)
