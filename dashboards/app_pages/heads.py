"""Heads: which attention heads carry the change, and what one of them looks at and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboards import panels
from dashboards.results import StoredResult
from dashboards.run_front import front_for_more, front_if_missing
from dashboards.selection import Selection, picks
from dashboards.strongest import open_on_the_strongest, strongest_head
from dashboards.views.cell_scores import at, show_scores
from dashboards.views.head_reading import show_attention, show_words
from dashboards.views.sentence import sentence_of
from dashboards.views.source import (
    Source,
    one_of,
    opened,
    request_of,
    result_table,
    steer_link,
)

KINDS = ("Patching", "HeadProbe", "HeadSelection", "RetrievalHeads", "WeightDelta", "ActivationDelta")


@dataclass(frozen=True)
class HeadMap:
    """One result as a table of layer by head; the figure is drawn only where it is shown."""

    table: pd.DataFrame
    part: tuple[str, ...]
    """What ``result.figure`` is asked for: the level or the site that the heads are of."""
    unit: str

    @property
    def call(self) -> str:
        """What makes the figure of ``result``."""
        return f"result.figure({', '.join(map(repr, self.part))})"

    def figure(self, result: Any) -> go.Figure:
        """The map of the result that the table is of."""
        return result.figure(*self.part)


def show() -> None:
    """The page."""
    st.title("Heads")
    st.caption("Which attention heads carry the change. Click a cell, or choose layer and head in the sidebar.")
    selection = opened()
    if selection is None:
        return
    results: list[StoredResult] = []
    maps: dict[str, HeadMap] = {}
    with panels.errors_shown():
        results, maps = _head_maps(selection)
        _show_map(selection, results, maps)
    name = f"L{selection.layer}H{selection.head}"
    st.header(f"Head {name}")
    with panels.errors_shown():
        _show_scores(selection, results, maps)
        steer_link(f"Steer with {name} switched off", heads=f"{name}=0")
    request = None
    with panels.errors_shown():
        request = request_of(selection, selection.layer, selection.head, selection.prompt)
    if request is not None:
        with panels.errors_shown():
            show_attention(selection, request)
        with panels.errors_shown():
            show_words(request)


def _head_maps(selection: Selection) -> tuple[list[StoredResult], dict[str, HeadMap]]:
    """The results that are maps of heads, the most telling kind first; and each one's table by its file."""
    results = sorted(
        (result for result in selection.results(*KINDS) if _has_heads(result)),
        key=lambda result: KINDS.index(result.kind),
    )
    maps = {result.file: heads for result in results if (heads := _map_of(result.load())) is not None}
    return [result for result in results if result.file in maps], maps


def _has_heads(result: StoredResult) -> bool:
    """WeightDelta keeps its heads in a table of their own, so its header says nothing of them."""
    return result.kind == "WeightDelta" or "head" in result.glance.sizes


def _show_map(selection: Selection, results: list[StoredResult], maps: dict[str, HeadMap]) -> None:
    shown_map = one_of(results, "Map", "head-map")
    if shown_map is None:
        front_if_missing("No map of heads was made for this pair yet. Run makes one here.", "heads", selection, "heads")
        return
    front_for_more("Make another map of heads", "heads", selection, "heads")
    source, heads = Source.stored(shown_map, selection), maps[shown_map.file]
    open_on_the_strongest(heads.table)
    figure = heads.figure(source.result)
    _shared_scale(figure, shown_map, results)
    from workbench.figures.cells import mark_cell

    mark_cell(figure, selection.layer, selection.head)
    st.markdown(f"**{panels.words(sentence_of(heads.table))}**")
    _show_way_to_strongest(selection, heads.table)
    st.caption(panels.words(f"{source.result.summary()}. Greyed cells are not beyond their control, or have no test."))
    code = f"{source.python}{heads.call}.show()\n"
    panels.figure(
        "heads", figure, code, source.provenance, frame=heads.table, on_pick=picks("layer", "head"),
        experiment=source.experiment,
    )  # fmt: skip


def _show_way_to_strongest(selection: Selection, table: pd.DataFrame) -> None:
    """A button that selects the strongest head, where another is selected."""
    place = strongest_head(table)
    if place is not None and place != (selection.layer, selection.head):
        st.button(
            f"Select L{place[0]}H{place[1]}, the strongest", icon=":material/my_location:", key="strongest-head",
            on_click=picks("layer", "head"), args=(place,),
        )  # fmt: skip


def _map_of(result: Any) -> HeadMap | None:
    """The result's table where it is a map of heads; no figure is drawn for it."""
    kind = type(result).__name__
    if kind == "WeightDelta":
        if result.heads.empty:
            return None
        return HeadMap(result.frame("head"), ("head",), result.unit)
    table = result.frame()
    if kind == "ActivationDelta":
        sites = [site for site in table["site"].unique() if table[table["site"] == site]["head"].notna().all()]
        if not sites:
            return None
        return HeadMap(table[table["site"] == sites[0]], (sites[0],), result.unit)
    if "head" not in table or table["head"].isna().any() or ("position" in table and table["position"].notna().any()):
        return None
    return HeadMap(table, (), getattr(result, "scale", result.unit))


def _shared_scale(figure: go.Figure, shown_map: StoredResult, results: list[StoredResult]) -> None:
    """Patching results that measure the same are coloured on one scale."""
    if shown_map.kind != "Patching":
        return
    from workbench.figures.cells import bound_of

    same = [other.load() for other in results if other.kind == "Patching"]
    bound = max(bound_of(other.table) for other in same if other.scale == shown_map.load().scale)
    figure.data[0].update(zmin=-bound, zmax=bound)


def _show_scores(selection: Selection, results: list[StoredResult], maps: dict[str, HeadMap]) -> None:
    """What every result of the run says of the selected head."""

    def read(stored: StoredResult) -> tuple[pd.DataFrame, str]:
        return maps[stored.file].table, maps[stored.file].unit

    if not show_scores("head", selection, results, read, ("score", "low", "high", "control", "q")):
        return
    for stored in (stored for stored in results if stored.kind == "WeightDelta"):
        source = Source.stored(stored, selection)
        parts = at(source.result.head_parts, selection, "head")
        if parts.empty:
            continue
        st.subheader("Its weights")
        st.caption("Relative change of the head's part of each matrix, known exactly; a control is the same change "
                   "spread evenly.")  # fmt: skip
        call = f"result.head_parts.query('layer == {selection.layer} and head == {selection.head}')"
        result_table(f"head-weights-{source.name}", source, parts, call)


show()
