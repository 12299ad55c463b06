"""Steer: build a recipe, turn it up and down, and compare the answers."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import answers, models, panels, selection
from dashboards.as_experiment import steer_experiment
from dashboards.recipe_form import ask_parts
from dashboards.recipe_parts import built
from dashboards.selection import Selection
from dashboards.state import Opened
from dashboards.steer_request import SteerRequest, lines, one_line, originals_of
from dashboards.steering import Steered, Swept, run_steer, run_sweep
from dashboards.work_on_button import Work, on_button, prefilled
from workbench.errors import UserError
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.prompts import Prompts

SHOWN = 6  # prompts that the page begins with; no docstring, Streamlit would show it
_LINKED: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}
_STEER = Work("steer", "Run", "Answering with base, tuned and steered model…", "Press Run: the answers appear here.")
_SWEEP = Work("sweep", "Sweep", "Answering at every strength…", "Press Sweep: the answers appear here.")


def show() -> None:
    """The page."""
    st.title("Steer")
    st.caption("Change what the model computes, and compare its answers. The model itself comes back unchanged.")
    request, beginning = _ask(selection.current())
    steer, sweep = st.tabs(["Answers", "Strength sweep"])
    with steer:
        if (done := on_button(_STEER, request, _run)) is not None:
            _show_steered(*done, beginning)
    with sweep:
        _show_sweep(request, beginning)


def _ask(selected: Selection) -> tuple[SteerRequest, str]:
    base, tuned, side, device = _ask_models(selected)
    left, right = st.columns([6, 5], gap="large")
    with left:
        st.subheader("Recipe")
        parts = ask_parts(selected, base, tuned)
    with right:
        st.subheader("Prompts")
        prompts, tokens, beginning = _ask_prompts(selected)
        raw, system = _ask_reading()
    known = _rows_shown(selected) or ()
    request = SteerRequest(
        base, tuned, parts, 1.0, side, lines(prompts), tokens, device,
        raw=raw, system=system, originals=originals_of(known, lines(prompts)),
    )  # fmt: skip
    with left:
        strength = st.slider(
            "Strength (times the recipe's own)", -4.0, 4.0, 1.0, 0.25, key="strength",
            disabled=not request.has_strength,
            help="0 leaves the model as it is. Experts are off or on: no strength moves them.", **_LINKED,
        )  # fmt: skip
        st.caption(f"In effect: {panels.words(request.label())}")
    return (replace(request, strength=float(strength)) if request.has_strength else request), beginning


def _ask_models(selected: Selection) -> tuple[str, str, str, str]:
    opened = Opened.from_environment()
    prefilled("base", opened.base or selected.base)
    prefilled("tuned", opened.tuned if opened.base else selected.tuned)
    base_given = st.session_state.get("base")
    with st.expander("Models", icon=":material/difference:", expanded=not base_given):
        left, right = st.columns(2)
        base = left.text_input(
            "Base model", key="base", placeholder="folder, hub id, or refusal-moe",
            help="An organism's name (refusal-moe, context-knob) stands for a small trained pair.", **_LINKED,
        )  # fmt: skip
        tuned = right.text_input("Tuned model or adapter", key="tuned", **_LINKED)
        side = left.segmented_control(
            "Steered side", ["tuned", "base"], key="side", default="tuned", required=True, **_LINKED
        )
        device = right.segmented_control(
            "Device", ["auto", "cpu", "cuda"], key="device", default="auto", required=True,
            help="auto takes a GPU when there is one.", **_LINKED,
        )  # fmt: skip
    return base, tuned, str(side), str(device)


def _ask_prompts(selected: Selection) -> tuple[str, int, str]:
    rows = _rows_shown(selected)
    prefilled("prompts", "\n".join(one_line(row.shown) for row in rows or ()))
    prompts = st.text_area(
        "One per line", key="prompts", height=192, placeholder="Write what the models should answer or continue.",
        persist_state="session",
    )  # fmt: skip
    if any(row.shown != one_line(row.shown) for row in rows or ()):
        st.caption("A line that stands for a prompt of the run is read as the run has it, with its turns and breaks.")
    left, right = st.columns(2)
    tokens = left.number_input("New tokens per answer", 1, 512, 8, key="tokens", **_LINKED)
    prefilled("begins", "" if not rows else (rows[0].answer or "").strip())
    beginning = right.text_input(
        "Count answers that begin with", key="begins", help="A word or a phrase, such as a refusal.", **_LINKED
    )
    return prompts, int(tokens), beginning


def _rows_shown(selected: Selection) -> Prompts | None:
    """The run's rows from the selected one on, that the box begins with."""
    rows = None
    with panels.errors_shown():
        rows = selected.rows()
    return None if not rows else rows[selected.prompt : selected.prompt + SHOWN]


def _ask_reading() -> tuple[bool, str]:
    left, right = st.columns(2)
    how = left.segmented_control(
        "A line is read as", ["chat", "raw"], key="read-as", default="chat", required=True,
        help="chat: a user's turn, where the model has a chat template. raw: the text as it is.", **_LINKED,
    )  # fmt: skip
    system = right.text_input("System turn", key="system", disabled=how == "raw", placeholder="none", **_LINKED)
    return how == "raw", "" if how == "raw" else str(system or "")


def _run(request: SteerRequest, _progress: Progress) -> Steered:
    pair = _pair(request)
    return run_steer(
        pair, built(request.parts, pair), request.inputs(),
        strength=request.strength, side=request.side, max_new_tokens=request.max_new_tokens,
    )  # fmt: skip


def _sweep(request: SteerRequest, _progress: Progress) -> Swept:
    pair = _pair(request)
    return run_sweep(
        pair, built(request.parts, pair), request.inputs(),
        strengths=request.strengths, side=request.side, max_new_tokens=request.max_new_tokens,
    )  # fmt: skip


def _pair(request: SteerRequest) -> Any:
    """The models, loaded only when the cheap mistakes are out of the way."""
    if not request.prompts:
        raise UserError("There is no prompt: write at least one line.")
    if not request.parts:
        raise UserError("There is nothing to steer with: choose a recipe, experts, heads, a knob or weights.")
    return models.pair(request.base, request.tuned, request.device, models.quick_dtype(request.base, request.device))


def _restored(result: Steered | Swept) -> None:
    if result.restored:
        st.success("Model restored: 0 hooks, logits identical", icon=":material/verified:")
    else:
        st.error(f"Model not restored: {result.n_hooks} hooks, logits identical: {result.identical}. Restart the app.")


def _show_steered(request: SteerRequest, result: Steered, beginning: str) -> None:
    changed = sum(place is not None for place in result.parted)
    of_strength = f" at strength {request.strength:g}" if request.has_strength else ""
    st.markdown(
        f"**{changed} of {len(result.prompts)} answers changed** by {panels.words(request.label())}{of_strength} "
        f"on {request.side}, {result.seconds:.1f} s on {panels.words(result.device)}"
    )
    if beginning.strip():
        answers.counted(result, beginning, request.side)
    answers.side_by_side(result, request.side)
    answers.what_was_read(result)
    _restored(result)
    with panels.errors_shown():
        panels.footer(
            "steered", request.python(), frame=result.frame(), provenance=request.provenance(),
            experiment=lambda: steer_experiment(request, beginning),
        )  # fmt: skip


def _show_sweep(request: SteerRequest, beginning: str) -> None:
    text = st.text_input("Strengths, by commas", "-2, -1, 0, 1, 2", key="strengths", width=320, **_LINKED)
    with panels.errors_shown():
        swept = replace(request, strength=1.0, strengths=_numbers(text))
        if not request.has_strength:
            st.info("An expert is off or on: this recipe has no strength to sweep.", icon=":material/info:")
        elif (done := on_button(_SWEEP, swept, _sweep)) is not None:
            _show_swept(*done, beginning)


def _show_swept(request: SteerRequest, result: Swept, beginning: str) -> None:
    st.markdown(
        f"**{len(result.strengths)} strengths of {len(result.prompts)} prompts as one batch**: "
        f"{panels.words(request.label())} on {request.side}, {result.seconds:.1f} s on {panels.words(result.device)}"
    )

    def again() -> str:
        return steer_experiment(request, beginning)

    if beginning.strip():
        from workbench.figures.behaviour_dose import dose_figure

        table = answers.dose(result, beginning)
        drawn = dose_figure(
            table, metric=f"share that begins with “{escape(panels.visible(beginning.strip()))}”",
            title=f"Dose and response, n = {len(result.prompts)} prompts, 95 % intervals",
        )  # fmt: skip
        panels.figure("dose", drawn, request.python(), request.provenance(), frame=table, experiment=again)
    answers.by_strength(result)
    _restored(result)
    panels.footer(
        "sweep", request.python(), frame=result.frame(), provenance=request.provenance(), experiment=again,
    )  # fmt: skip


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"{text!r} is no list of numbers, such as -2, -1, 0, 1, 2.") from None
    if not numbers:
        raise UserError("Give at least one strength, such as -2, -1, 0, 1, 2.")
    return numbers


show()
