"""Knobs and concepts: directions that decide a behaviour, and those that tuning moved."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import panels
from dashboards.run_front import front_for_more, front_if_missing
from dashboards.selection import picks
from dashboards.views.source import (
    LINKED,
    Probe,
    Request,
    Source,
    one_of,
    opened,
    request_of,
    result_table,
    steer_link,
    stored_or_computed,
)
from dashboards.work_on_button import Work
from workbench.progress import Progress

_CONCEPTS = Work(
    "concepts", "Find directions", "Recording both models and finding directions…",
    "Press Find directions: the directions in which tuning moved the selected layer appear here.",
)  # fmt: skip
METHOD, DIRECTIONS = "pca-uncentred", 6


def show() -> None:
    """The page."""
    st.title("Knobs and concepts")
    st.caption(
        "Directions of the residual stream: one that decides between two behaviours, and those that tuning moved."
    )
    selection = opened()
    if selection is None:
        return
    st.header("The knob")
    with panels.errors_shown():
        knob = one_of(selection.results("Knob"), "Knob", "knob")
        if knob is None:
            front_if_missing(
                "No knob was found for this pair yet. Run finds one here, with prompts that have group, intent and "
                "answer.", "knob", selection, "knobs",
            )  # fmt: skip
        else:
            front_for_more("Find another knob", "knob", selection, "knobs")
            _show_knob(Source.stored(knob, selection))
    st.header("Concept directions")
    with panels.errors_shown():
        request = request_of(selection, selection.layer) if not selection.results("ConceptDirections") else None
        source = stored_or_computed(selection, request, "ConceptDirections", Probe(_call, _find, _step), _CONCEPTS)
        if source is not None:
            _show_concepts(source)


def _find(request: Request, progress: Progress) -> Any:
    import probes
    from workbench.recording.record_pair import record

    (layer,), pair = request.what, request.pair()
    recording = record(pair, request.prompts, "resid_post", layers=[layer], positions="all", progress=progress)
    return probes.concept_directions(recording, METHOD, layer=layer, k=DIRECTIONS, model=pair.tuned)


def _call(request: Request) -> str:
    (layer,) = request.what
    return (
        f"probes.concept_directions(\n    wb.record(pair, prompts, 'resid_post', layers=[{layer}], positions='all'),\n"
        f"    {METHOD!r}, layer={layer}, k={DIRECTIONS}, model=pair.tuned,\n)"
    )


def _step(request: Request) -> dict[str, Any]:
    return {"do": "localize concepts", "layer": request.what[0], "method": METHOD, "k": DIRECTIONS}


def _show_knob(source: Source) -> None:
    from workbench.figures.knob import knob_slope, natural_spread

    knob = source.result
    st.caption(panels.words(knob.summary()))
    settings = ", ".join(f"{intent}: {value:+.2f}" for intent, value in knob.settings.items())
    st.caption(panels.words(f"Settings chosen on the training pairs: {settings} (the model's own units)."))
    intent = st.segmented_control(
        "Answers of", list(knob.intents), key="slope-of", required=True, default=knob.intents[0],
        format_func=panels.visible, **LINKED,
    )  # fmt: skip
    held = f"n = {knob.counts['held_out']} held-out pairs"
    drawn = knob_slope(
        knob.sweep, knob.natural, intent=str(intent), title=f"Answers against the knob, layer {knob.layer} ({held})"
    )
    code = (
        f"{source.python}from workbench.figures.knob import knob_slope, natural_spread\n\n"
        f"knob_slope(result.sweep, result.natural, intent={intent!r}).show()\n"
    )
    panels.figure("knob-slope", drawn, code, source.provenance, frame=knob.sweep, experiment=source.experiment)
    for column, name in zip(st.columns(len(knob.settings)), knob.settings, strict=True):
        with column:
            steer_link(f"Steer with the knob set to {panels.words(name)}", **{"set-knob": "true", "intent": name})
    st.subheader("Where the models put it by themselves")
    rows = knob.natural.groupby("model").size().max()
    spread = natural_spread(knob.natural, title=f"Natural coordinate (n = {rows} prompts per model)")
    code = (
        f"{source.python}from workbench.figures.knob import natural_spread\n\nnatural_spread(result.natural).show()\n"
    )
    panels.figure("knob-natural", spread, code, source.provenance, frame=knob.natural, experiment=source.experiment)
    _show_transfer(source)


def _show_transfer(source: Source) -> None:
    """The tuned model's knob in the base, and how it was found."""
    knob = source.result
    st.subheader("In the tuned model and in its base")
    st.caption(
        "Set by hand: share of the prompts asked for the other intent that then give this intent's answer; before: "
        f"without the knob; control: random directions. n = {knob.counts['held_out']} held-out pairs."
    )
    result_table("knob-flips", source, knob.flips, "result.flips")
    st.caption("Swapped between prompts of opposite intent: share that give the partner's answer; control: random "
               "directions.")  # fmt: skip
    result_table("knob-swaps", source, knob.swaps, "result.swaps")
    with st.expander("Layers tried", icon=":material/layers:"):
        result_table("knob-layers", source, knob.frame(), "result.frame()")


def _show_concepts(source: Source) -> None:
    result = source.result
    st.caption(panels.words(f"{result.summary()}. Control: {result.control}. Click a bar to read a direction."))
    panels.figure(
        "concepts", result.figure(), f"{source.python}result.figure().show()\n", source.provenance,
        frame=result.frame(), on_pick=picks("direction"), experiment=source.experiment,
    )  # fmt: skip
    last = int(result.table["direction"].max())
    if st.session_state.get("direction", 0) > last:
        st.session_state["direction"] = last
    number = int(st.number_input("Direction", 0, last, 0, 1, key="direction", width=200, **LINKED))
    row = result.table[result.table["direction"] == number].iloc[0]
    st.markdown(
        f"Direction {number} of layer {result.layer}: {row['score']:.1%} of tuning's change "
        f"[{row['low']:.1%}, {row['high']:.1%}], random directions {row['control']:.1%}, q = {row['q']:.2g}. "
        f"The mean of tuned - base along it is {row['shift']:+.3g}."
    )
    left, right = st.columns(2)
    for place, title, words in ((left, "Raises (change of the logit)", row["up"]), (right, "Lowers", row["down"])):
        with place:
            st.caption(title)
            panels.said(str(words) or "(read with model= to see tokens)")
    st.caption("Where it is strongest and weakest: the token stands between » and «.")
    contexts = result.contexts[result.contexts["direction"] == number].drop(columns="direction")
    panels.table(
        "contexts", contexts, f"{source.python}result.contexts.query('direction == {number}')\n", source.provenance,
        shown=contexts[["end", "value", "context", "prompt", "position"]].round(3), experiment=source.experiment,
    )  # fmt: skip
    with st.expander("All directions", icon=":material/table:"):
        result_table("directions", source, result.frame(), "result.frame()")
    st.caption("To take a direction out of the model, save it as a recipe and choose it on the page Steer:")
    st.code(f"{source.python}result.recipe([{number}], to='mean').save('ablate.safetensors')\n", language="python")


show()
