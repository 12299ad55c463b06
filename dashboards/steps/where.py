"""Where: the places that carry the change, strongest first, beside the maps that say so."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.readable_figures import from_zero
from dashboards.selection import picks
from dashboards.steps import place
from dashboards.steps.glance import layers_at_a_glance, measures_of, sentence_of
from dashboards.steps.subject import Subject
from dashboards.strongest import open_on_the_strongest
from tunescope.look.notes import WHERE
from workbench.tables import cell_text, with_intervals

MAPS = {"heads": ("layer", "head"), "layers": ("layer",), "weights": ("layer",)}
"""Result -> what a click on its map selects."""
ROWS = ("activations", "lens")
"""Results that are rows of the overview alone."""
OVERVIEW = "all at a glance"
_TOP = 12
_DETAILS = (("heads", "Heads", "grid_on"), ("tokens", "Tokens", "text_fields"), ("skills", "Skills", "scatter_plot"),
            ("knobs", "Knobs and concepts", "tune"), ("analyses", "More analyses", "biotech"))  # fmt: skip


def show(subject: Subject) -> None:
    """The maps, and the ranked places below them."""
    note = subject.notes.steps.get(WHERE)
    if note is None or subject.run is None:
        st.info(
            "Press Run: the weights, then layers and heads where the two answers part, appear here. Attribution first, "
            "the strongest heads confirmed by patching.", icon=":material/info:",
        )  # fmt: skip
        return
    if (heads := subject.table("heads")) is not None:
        open_on_the_strongest(places_of(heads))
    texts = {sentence.partition(":")[0]: sentence.partition(":")[2].strip() for sentence in note.sentences}
    tables = {name: table for name in (*MAPS, *ROWS) if (table := subject.table(name)) is not None}
    if tables:
        maps = [name for name in MAPS if name in tables]
        name = st.segmented_control("Map", [*maps, OVERVIEW], key="where-map", default=OVERVIEW, required=True)
        if name == OVERVIEW:
            _show_overview(subject, tables, texts)
        else:
            st.markdown(f"**{panels.words(_sentence(texts.get(str(name), '')))}**")
            _show_map(subject, str(name))
    with st.container(key="chosen-place"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        _show_places(subject)
    with right:
        place.show(subject, tables)
    place.show_readings()
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.markdown("Look closer:")
        for page, label, icon in _DETAILS:
            st.page_link(f"app_pages/{page}.py", label=label, icon=f":material/{icon}:")
    for name, sentence in texts.items():
        if name not in MAPS:
            st.caption(panels.words(f"{name}: {sentence}"))


def places_of(heads: pd.DataFrame) -> pd.DataFrame:
    """The heads that were patched, strongest first: place, score with interval, control, q."""
    exact = heads[heads["exact"]] if "exact" in heads else heads
    named = [f"L{int(row['layer'])}H{int(row['head'])}" for row in exact.to_dict("records")]
    columns = [name for name in ("score", "low", "high", "control", "q") if name in exact]
    return exact[["layer", "head", *columns]].assign(place=named).sort_values("score", ascending=False).head(_TOP)


def _show_places(subject: Subject) -> None:
    heads = subject.table("heads")
    if heads is None:
        st.caption("No head was ranked: the sentence below says why.")
        return
    st.markdown("**Strongest places**", help=panels.term("patching"))
    places = places_of(heads)
    cells = places[["layer", "head"]].astype(int).to_numpy().tolist()
    shown = with_intervals(places[["place", *[c for c in places if c not in ("place", "layer", "head")]]])
    for name in {"control", "q"} & set(shown):
        shown[name] = [cell_text(float(value), 2) for value in places[name]]

    def pick() -> None:
        if rows := st.session_state["places-table"]["selection"]["rows"]:
            picks("layer", "head")(cells[rows[0]])

    st.dataframe(
        shown, width="stretch", hide_index=True, key="places-table", on_select=pick, selection_mode="single-row",
        column_config=panels.explained(shown), alt="Heads by their effect",
    )  # fmt: skip
    st.caption(
        "score: share of the change of the next word that the head carries (1: all of it). A click on a row or a cell "
        "selects that head on every page."
    )


def _show_overview(subject: Subject, tables: dict[str, pd.DataFrame], texts: dict[str, str]) -> None:
    measures = measures_of(tables)
    headline = " ".join(_sentence(texts[name]) for name in ("layers", "heads") if texts.get(name))
    st.markdown(f"**{panels.words(headline or sentence_of(measures))}**")
    assert subject.run is not None
    code = "".join(f"{name} = runs.open({str(subject.run.path)!r}).read_table('tables/{name}')\n" for name in tables)
    call = f"layers_at_a_glance({{{', '.join(f'{name!r}: {name}' for name in tables)}}}).show()\n"
    panels.figure(
        "where-overview", layers_at_a_glance(tables),
        f"from workbench import runs\nfrom dashboards.steps.glance import layers_at_a_glance\n\n{code}{call}",
        dict(subject.run.manifest.provenance), frame=measures, on_pick=picks("layer"),
    )  # fmt: skip
    own = "Every row on a scale of its own, from none to its largest; hover for the numbers."
    st.caption(panels.words(f"{sentence_of(measures)} {own}" if headline else own))


def _show_map(subject: Subject, name: str) -> None:
    import plotly.io

    assert subject.run is not None
    path = subject.run.file(f"figures/{name}.json")
    drawn: Any = plotly.io.from_json(path.read_text(encoding="utf-8"))
    drawn.update_layout(width=None)
    if name == "weights":
        from_zero(drawn)
    call = f"from workbench.results import Result\n\nResult.load({str(subject.run.path / 'results' / name)!r}"
    panels.figure(
        f"where-{name}", drawn, f"{call} + '.safetensors').figure().show()\n", dict(subject.run.manifest.provenance),
        frame=subject.table(name), on_pick=picks(*MAPS[name]),
    )  # fmt: skip


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
