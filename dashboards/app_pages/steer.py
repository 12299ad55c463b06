"""Steer: base, tuned and steered answers side by side, live."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import models, panels
from dashboards.asked import EXPERTS, FILE, MODES, Asked, labels, lines
from dashboards.state import Opened, known_runs, recipes_of, verified
from dashboards.steering import Steered, run_steer
from workbench import runs
from workbench.errors import UserError

if TYPE_CHECKING:
    from interventions.recipe import Recipe


def show() -> None:
    """The page."""
    st.title("Steer")
    asked = _ask()
    if st.button("Run", type="primary", icon=":material/play_arrow:", key="go"):
        with panels.told(), st.spinner("Answering three times…"):
            st.session_state["steered"] = (asked, _run(asked))
    if "steered" not in st.session_state:
        st.info("Press Run: the answers of base, tuned and steered model appear here.", icon=":material/info:")
        return
    done, result = st.session_state["steered"]
    if done != asked:
        st.warning("These answers are of earlier inputs; press Run for new ones.", icon=":material/history:")
    _show_result(done, result)


def _ask() -> Asked:
    opened = Opened.from_environment()
    left, right = st.columns(2)
    with left:
        base = st.text_input(
            "Base model", opened.base, key="base", bind="query-params", placeholder="folder, hub id, or refusal-moe",
            help="An organism's name (refusal-moe, context-knob) stands for a small trained pair.",
        )  # fmt: skip
    with right:
        tuned = st.text_input("Tuned model or adapter", opened.tuned, key="tuned", bind="query-params")
    with left:
        how = st.radio("Intervention", [FILE, EXPERTS], key="how", bind="query-params", horizontal=True)
    recipe, mode, strength = _ask_experts(right) if how == EXPERTS else _ask_recipe(right)
    with left:
        side = st.radio("Steered side", ["tuned", "base"], key="side", bind="query-params", horizontal=True)
    prompts = st.text_area(
        "Prompts, one per line",
        key="prompts",
        height=120,
        placeholder="Write what the models should continue.",
        persist_state="session",
    )
    tokens = st.number_input("New tokens per answer", 1, 512, 24, key="tokens", bind="query-params", width=220)
    return Asked(base, tuned, how, recipe, mode, strength, side, prompts, int(tokens))


def _ask_experts(place: Any) -> tuple[str, str, float]:
    with place:
        off = st.text_input("Experts, as layer and number", key="off", bind="query-params", placeholder="L1E3, L2E0")
        mode = st.selectbox(
            "What off means", MODES, key="mode", bind="query-params",
            help="replace: the next best takes its slot. drop: the slot stays empty. "
            "drop_renorm: its weight goes to the token's other experts.",
        )  # fmt: skip
    return off, mode, 1.0


def _ask_recipe(place: Any) -> tuple[str, str, float]:
    found = _recipes()
    with place:
        path = st.selectbox(
            "Recipe", list(found), key="recipe", bind="query-params", accept_new_options=True,
            index=0 if found else None,
            placeholder="A .safetensors file that Recipe.save wrote",
        )  # fmt: skip
        strength = st.slider(
            "Strength (times the recipe's own)", -4.0, 4.0, 1.0, 0.25, key="strength", bind="query-params"
        )
    return str(found.get(path, path or "")), "", strength


def _recipes() -> dict[str, Path]:
    """Recipes of the known runs, as ``run: file``; a run that cannot be read has none."""
    found = {}
    for name, folder in known_runs().items():
        try:
            found.update({f"{name}: {file}": folder / file for file in recipes_of(folder)})
        except UserError:
            continue
    return found


def _run(asked: Asked) -> Steered:
    prompts = lines(asked.prompts)
    if not prompts:
        raise UserError("There is no prompt: write at least one line.")
    if not asked.recipe.strip():
        raise UserError("There is nothing to steer with: choose a recipe, or name experts such as L1E3.")
    pair = models.pair(asked.base, asked.tuned)
    return run_steer(
        pair, _recipe(asked), prompts,
        strength=asked.strength, side=asked.side, max_new_tokens=asked.max_new_tokens,
    )  # fmt: skip


def _recipe(asked: Asked) -> Recipe:
    import interventions as iv

    if asked.how == EXPERTS:
        switch: Any = iv.ExpertSwitch(off=labels(asked.recipe), mode=asked.mode)
        return iv.Recipe([switch])
    path = Path(asked.recipe)
    for folder in known_runs().values():
        if path.is_relative_to(folder):
            path = verified(runs.open(folder), path.relative_to(folder).as_posix())
    return iv.Recipe.load(path)


def _show_result(asked: Asked, result: Steered) -> None:
    if result.restored:
        st.success("Model restored: 0 hooks, logits identical", icon=":material/verified:")
    else:
        st.error(f"Model not restored: {result.n_hooks} hooks, logits identical: {result.identical}. Restart the app.")
    for number, prompt in enumerate(result.prompts):
        st.text(f"Prompt {number + 1}: {panels.visible(prompt)}")
        changed = result.steered[number] != getattr(result, asked.side)[number]
        texts = {
            "Base": result.base[number],
            "Tuned": result.tuned[number],
            f"Steered {asked.side}, {'changed' if changed else 'unchanged'}": result.steered[number],
        }
        for column, (title, text) in zip(st.columns(3), texts.items(), strict=True):
            with column:
                st.caption(title)
                panels.said(text)
    with panels.told():
        panels.footer("steered", asked.python(), frame=result.frame(), provenance=asdict(asked))


show()
