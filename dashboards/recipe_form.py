"""The form in which a recipe is built: each tab that is filled in adds a part, and together they act."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import panels
from dashboards.mixtures import has_experts
from dashboards.recipe_parts import (
    ADAPTER,
    LAYERS,
    MODES,
    Experts,
    HeadDirections,
    Heads,
    KnobSet,
    Part,
    Saved,
    Weights,
    labels,
    scales,
)
from dashboards.registered_part import ask_registered
from dashboards.selection import Selection
from dashboards.state import RecipeNote, known_runs, recipes_of
from dashboards.work_on_button import prefilled
from workbench.errors import UserError

_LINKED: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}


def ask_parts(selection: Selection, base: str, tuned: str) -> tuple[Part, ...]:
    """Draw the form for the models that the page names; returns what is filled in."""
    forms: dict[str, Callable[[], list[Part]]] = {
        "Saved recipe": lambda: _saved(selection, tuned), "Experts": lambda: _experts(selection),
        "Heads": lambda: _heads(selection), "Knob": lambda: _knob(selection), "Weights": _weights,
        "Any other": lambda: [*ask_registered()],
    }  # fmt: skip
    if not has_experts(base, tuned):
        del forms["Experts"]
    parts: list[Part] = []
    for tab, form in zip(st.tabs(list(forms)), forms.values(), strict=True):
        with tab, panels.errors_shown():
            parts += form()
    return tuple(parts)


def _saved(selection: Selection, tuned: str) -> list[Part]:
    recipes = _recipes(selection, tuned)
    first = next((name for name, (_, _, fits) in recipes.items() if fits), None)
    prefilled("recipe", first)
    name = st.selectbox(
        "Recipe", list(recipes), key="recipe", accept_new_options=True, format_func=panels.visible, index=None,
        placeholder="None; or a file, or a line such as 0.5*formal",
        help="Recipes that the runs keep, those made for this model first. Or write a path, or a line of names "
        "in the workspace's book.", **_LINKED,
    )  # fmt: skip
    if not name:
        return []
    path, note, _ = recipes.get(name, (Path(name), RecipeNote((), ""), False))
    if note.kinds:
        st.caption(f"Holds {panels.words(', '.join(dict.fromkeys(note.kinds)))}.")
    return [Saved(str(path), note.kinds)]


def _recipes(selection: Selection, tuned: str) -> dict[str, tuple[Path, RecipeNote, bool]]:
    """``recipe (run)`` -> path, header, and whether it was made on this model; those first."""
    rows = []
    for run, folder in known_runs().items():
        try:
            notes = recipes_of(folder)
        except UserError:
            continue
        for file, note in notes.items():
            fits = bool(note.model) and note.model == tuned
            name = Path(file).stem if folder == selection.folder else f"{Path(file).stem} ({run})"
            rows.append((not fits, folder != selection.folder, name, (folder / file, note, fits)))
    return {name: value for _, _, name, value in sorted(rows, key=lambda row: row[:3])}


def _experts(selection: Selection) -> list[Part]:
    left, middle, right = st.columns(3)
    off = left.text_input("Off", key="off", placeholder="L1E3, L2E0", **_LINKED)
    on = middle.text_input("Always on", key="on", placeholder="L1E3", **_LINKED)
    mode = right.selectbox(
        "What off means", MODES, key="mode",
        help="replace: the next best expert takes the slot. drop: the slot stays empty. "
        "drop_renorm: its weight goes to the token's other experts.", **_LINKED,
    )  # fmt: skip
    if selection.sizes.get("expert"):
        _add_button(f"L{selection.layer}E{selection.expert}", "off", "Switch off")
    return [Experts(labels(off), labels(on), mode)] if off.strip() or on.strip() else []


def _heads(selection: Selection) -> list[Part]:
    text = st.text_input(
        "Heads and their scale", key="heads", placeholder="L1H2=0, L2H3=0.5",
        help="0 switches a head off, 1 leaves it, 2 doubles what it writes.", **_LINKED,
    )  # fmt: skip
    if selection.sizes.get("head"):
        _add_button(f"L{selection.layer}H{selection.head}=0", "heads", "Switch off")
    parts: list[Part] = [Heads(scales(text))] if text.strip() else []
    if probed := selection.results("HeadProbe"):
        if st.toggle("Move heads along probed directions", key="probed", **_LINKED):
            left, right = st.columns(2)
            count = left.number_input("How many heads, best first", 1, 512, 4, key="probed-heads", **_LINKED)
            sigmas = right.slider("How far, in σ of the projection", -30.0, 30.0, 15.0, 1.0, key="sigmas", **_LINKED)
            parts.append(HeadDirections(str(probed[0].path), int(count), float(sigmas)))
    else:
        st.caption("With a head probe in the run, heads can also be moved along its directions.")
    return parts


def _knob(selection: Selection) -> list[Part]:
    results = selection.results("Knob")
    if not results:
        panels.empty(
            "This run holds no knob for this pair. This finds one:",
            "tunescope localize knob BASE TUNED --prompts prompts.jsonl",
        )
        return []
    if not st.toggle("Set the knob", key="set-knob", **_LINKED):
        return []
    knob = results[0].load()
    settings = knob.settings
    intent = st.segmented_control(
        "To", [*settings, "a number"], key="intent", required=True, default=next(iter(settings)), **_LINKED
    )
    value: str | float = str(intent)
    if intent == "a number":
        low, high = min(settings.values()), max(settings.values())
        width = (high - low) or 1.0
        value = st.slider("Coordinate", low - width, high + width, (low + high) / 2, key="coordinate", **_LINKED)
    st.caption(f"Layer {knob.layer}; " + ", ".join(f"{name} is {number:+.2f}" for name, number in settings.items()))
    return [KnobSet(str(results[0].path), value)]


def _weights() -> list[Part]:
    kind = st.segmented_control(
        "Scale tuning's change of the weights", ["no", "by layer", "adapter"], key="weights", required=True,
        default="no", help="By layer: for the base of two full models, or the tuned side of an adapter. "
        "Adapter: for the tuned side of an adapter pair.", **_LINKED,
    )  # fmt: skip
    if kind == "by layer":
        left, right = st.columns(2)
        a = left.slider("First layer (0 base, 1 tuned)", 0.0, 2.0, 1.0, 0.05, key="first-layer", **_LINKED)
        last = right.slider("Last layer", 0.0, 2.0, 1.0, 0.05, key="last-layer", **_LINKED)
        return [Weights(LAYERS, a, round(last - a, 6))]
    if kind == "adapter":
        scale = st.slider("Scale of the adapter (0 base, 1 as trained)", 0.0, 2.0, 1.0, 0.05, key="scale", **_LINKED)
        return [Weights(ADAPTER, scale)]
    return []


def _add_button(entry: str, key: str, label: str) -> None:
    """A button that adds the selected cell to a text field."""

    def add() -> None:
        text = str(st.session_state.get(key) or "")
        st.session_state[key] = f"{text}, {entry}" if text.strip() else entry

    name = entry.partition("=")[0]
    st.button(f"{label} {name}, the selected one", key=f"add-{key}", on_click=add, icon=":material/add:")
