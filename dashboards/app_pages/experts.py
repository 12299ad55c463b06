"""Experts: which experts a behaviour uses, what happens without them, and where a prompt's tokens go."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.as_experiment import written_out
from dashboards.results import StoredResult
from dashboards.run_front import front_for_more, front_if_missing
from dashboards.selection import Selection, picks
from dashboards.views import live
from dashboards.views.cell_scores import show_scores
from dashboards.views.sentence import sentence_of
from dashboards.views.source import (
    Request,
    Source,
    one_of,
    opened,
    prompt_of,
    request_of,
    result_table,
    show_prompt,
    steer_link,
)
from dashboards.work_on_button import Work, on_button
from workbench.progress import Progress

_SCORES = (
    "phase",
    "score",
    "low",
    "high",
    "control",
    "control_low",
    "control_high",
    "q",
    "target_share",
    "other_share",
)
_STEP = {"do": "record", "sites": ["router"], "positions": "all"}
_ROUTES = Work(
    "routes", "Follow the tokens", "Reading the routers of both models…",
    "Press Follow the tokens: the experts that each token of the selected prompt is sent to appear here.",
)  # fmt: skip


def show() -> None:
    """The page."""
    st.title("Experts")
    st.caption("Which experts a behaviour uses. Click a cell, or choose layer and expert in the sidebar.")
    selection = opened()
    if selection is None:
        return
    maps = sorted(
        selection.results("ExpertMap"), key=lambda result: result.load().reference is None
    )  # tuned - base first
    weights = [result for result in selection.results("WeightDelta") if len(result.load().experts)]
    with panels.errors_shown():
        _show_map(selection, maps, weights)
    if maps or weights:
        name = f"L{selection.layer}E{selection.expert}"
        st.header(f"Expert {name}")
        with panels.errors_shown():
            show_scores("expert", selection, [*maps, *weights], _scores, _SCORES)
            steer_link(f"Steer with {name} switched off", off=name)
    with panels.errors_shown():
        _show_switching(selection, bool(maps))
    with panels.errors_shown():
        _show_routes(selection, bool(maps or weights))


def _show_map(selection: Selection, maps: list[StoredResult], weights: list[StoredResult]) -> None:
    shown_map = one_of([*maps, *weights], "Map", "expert-map")
    if shown_map is None:
        front_if_missing(
            "No map of experts was made for this pair yet. Run makes one here, for a mixture of experts and prompts "
            "with a label.", "experts", selection, "experts",
        )  # fmt: skip
        return
    front_for_more("Make another map of experts", "experts", selection, "experts")
    from workbench.figures.cells import bound_of, mark_cell

    source = Source.stored(shown_map, selection)
    result = source.result
    if shown_map.kind == "WeightDelta":
        drawn, frame, call = result.figure("expert"), result.frame("expert"), "result.figure('expert')"
    else:
        bound = max(bound_of(other.load().table) for other in maps)
        drawn, frame, call = result.figure(), result.frame(), "result.figure()"
        drawn.data[0].update(zmin=-bound, zmax=bound)  # all maps of the run on one scale
    mark_cell(drawn, selection.layer, selection.expert)
    st.markdown(f"**{panels.words(sentence_of(frame))}**")
    st.caption(panels.words(result.summary()))
    panels.figure(
        "experts", drawn, f"{source.python}{call}.show()\n", source.provenance, frame=frame,
        on_pick=picks("layer", "expert"), experiment=source.experiment,
    )  # fmt: skip
    with st.expander("As a table", icon=":material/table:"):
        result_table("experts-table", source, frame, call.replace("figure", "frame"))


def _scores(stored: StoredResult) -> tuple[pd.DataFrame, str]:
    result = stored.load()
    return result.frame("expert") if stored.kind == "WeightDelta" else result.frame(), result.unit


def _show_switching(selection: Selection, has_maps: bool) -> None:
    results = selection.results("SwitchingCurve")
    if not results and not has_maps:
        return
    st.header("Switching experts off")
    curve = one_of(results, "Ranking", "switching")
    if curve is None:
        panels.empty("This run holds no switching curve. The demo measures two:", "tunescope demo")
        return
    source = Source.stored(curve, selection)
    result = source.result
    st.caption(panels.words(f"In this order: {', '.join(result.ranked)}. {result.summary()}."))
    panels.figure(
        "switching", result.figure(), f"{source.python}result.figure().show()\n", source.provenance,
        frame=result.frame(), experiment=source.experiment,
    )  # fmt: skip
    result_table("switching-table", source, result.frame(), "result.frame()")


def _show_routes(selection: Selection, is_mixture: bool) -> None:
    if not is_mixture:
        return
    st.header("Where the tokens go")
    request = request_of(selection, selection.prompt)
    if request is None:
        return
    show_prompt(request, selection.prompt)
    done = on_button(_ROUTES, request, _read_routes)
    if done is None:
        return
    from workbench.figures.routing import routing_flow, routing_map

    of, seen = done
    (number,) = of.what
    count = f"{len(seen.tokens)} tokens of prompt {number} (n = 1 prompt)"
    if seen.left_out:
        st.caption(f"The last {len(seen.tokens)} tokens are shown; {seen.left_out} before them are not.")
    code = (
        "from dashboards.views.live import read_routes\n"
        "from workbench.figures.routing import routing_flow, routing_map\n"
        f"{of.python()}\nseen = read_routes(pair, prompts[{number}])\n"
    )
    drawn = routing_map(seen.cells, seen.tokens, title=f"Router weights of {count}")

    def again() -> str:
        return of.experiment("routes", _STEP, written_out(of.prompts[number : number + 1]))

    panels.figure(
        "routes", drawn, f"{code}routing_map(seen.cells, seen.tokens).show()\n", of.provenance(), frame=seen.cells,
        experiment=again,
    )  # fmt: skip
    st.caption(
        "As a flow: the width between two experts is the number of tokens that took both, each counted by the product "
        "of its two router weights."
    )
    flow = routing_flow(seen.cells, title=f"Flow of {count} from layer to layer")
    panels.figure(
        "flow", flow, f"{code}routing_flow(seen.cells).show()\n", of.provenance(), frame=seen.cells, experiment=again
    )


def _read_routes(request: Request, _progress: Progress) -> Any:
    return live.read_routes(request.pair(), prompt_of(request, request.what[0]))


show()
