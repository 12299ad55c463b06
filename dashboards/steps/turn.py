"""Turn it: every way to turn the behaviour as a row, best first, and one click to try it in the chat."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.parts import LAYERS, Part, Saved, Weights
from dashboards.steps import chat
from dashboards.steps.subject import Subject
from tunescope.look.notes import TURN
from workbench.tables import with_intervals


def show(subject: Subject) -> None:
    """The candidates, the dose curve of the tuning, and the chat with the candidate that is selected."""
    note, table = subject.notes.steps.get(TURN), subject.table("candidates")
    if note is None:
        st.info(
            "Press Run: how much of the tuning, the heads and the direction are tried, and appear here, best first.",
            icon=":material/info:",
        )  # fmt: skip
        return
    if table is None:
        for sentence in note.sentences:
            st.markdown(panels.words(sentence))
        return
    st.markdown(f"**{panels.words(sentence_of(table, subject.notes.behaviour or ''))}**")
    left, right = st.columns([3, 2], gap="large")
    with left:
        _show_table(subject, table)
    with right:
        _show_dose(subject, table)
    for sentence in note.sentences[:-1]:
        st.caption(panels.words(sentence))
    chat.show(subject, parts_of(subject, table))


def sentence_of(table: pd.DataFrame, behaviour: str) -> str:
    """The best candidate in one plain sentence."""
    tuned = table[table["candidate"] == "tuned"].iloc[0]
    tried = table[table["candidate"] != "tuned"]
    if tried.empty:
        return "Nothing was tried."
    best = tried.iloc[0]
    told = (
        f"{best['candidate']} leaves {behaviour} on {best['share']:.0%} [{best['low']:.0%}, {best['high']:.0%}] of the "
        f"prompts that show it (tuned: {tuned['share']:.0%}"
    )
    told += ")" if pd.isna(best["random"]) else f"; random stand-ins: {best['random']:.0%})"
    if pd.notna(best["others_changed"]):
        told += f" and changes {best['others_changed']:.0%} of the other answers"
    return f"{told}."


def parts_of(subject: Subject, table: pd.DataFrame) -> dict[str, tuple[Part, str]]:
    """Candidate -> how it is made, and the side that it acts on; best first."""
    assert subject.run is not None
    found: dict[str, tuple[Part, str]] = {}
    for name in table["candidate"]:
        file = subject.run.path / "recipes" / f"{name}.safetensors"
        about: dict[str, Any] = subject.notes.candidates.get(name, {})
        if file.is_file():
            found[name] = (Saved(str(file)), "tuned")
        elif about.get("side") == "base":
            found[name] = (Weights(LAYERS, float(about["scale"])), "base")
    return found


def _show_table(subject: Subject, table: pd.DataFrame) -> None:
    shown = with_intervals(table.drop(columns=["change", "change_low", "change_high"])).rename(
        columns={"others_changed": "others changed"}
    )
    names = table["candidate"].tolist()

    def pick() -> None:
        rows = st.session_state["candidates-table"]["selection"]["rows"]
        if rows and names[rows[0]] != "tuned":
            st.session_state["chat-recipe"] = names[rows[0]]

    st.dataframe(
        shown, width="stretch", hide_index=True, key="candidates-table", on_select=pick, selection_mode="single-row",
        column_config=panels.explained(shown), alt="Ways to turn the behaviour",
    )  # fmt: skip
    st.caption(
        "share: of the prompts that show the behaviour, those that still do. random: the same with random stand-ins "
        "(a change of all weights has none; the direction's are told below). A click on a row takes it into the chat."
    )
    assert subject.run is not None
    code = f"from workbench import runs\n\nruns.open({str(subject.run.path)!r}).read_table('tables/candidates')\n"
    panels.footer("candidates", code, provenance=dict(subject.run.manifest.provenance), frame=table)


def dose_of(subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """strength, estimate, low, high, n: how much of the tuning against the behaviour; 1 is the tuned model."""
    scales = {name: one.get("scale") for name, one in subject.notes.candidates.items()} | {"tuned": 1.0}
    rows = table.assign(strength=table["candidate"].map(scales)).dropna(subset=["strength"])
    rows = rows.rename(columns={"share": "estimate"})[["strength", "estimate", "low", "high", "n"]]
    return rows.sort_values("strength", ignore_index=True)


def _show_dose(subject: Subject, table: pd.DataFrame) -> None:
    dose = dose_of(subject, table)
    if len(dose) < 2:
        return
    from workbench.figures.behaviour_dose import dose_figure

    drawn = dose_figure(
        dose, metric=f"share with {panels.visible(subject.notes.behaviour or '')}",
        title="How much of the tuning: 0 is the base, 1 as tuned",
    )  # fmt: skip
    drawn.update_xaxes(title={"text": "how much of the tuning"})
    assert subject.run is not None
    code = f"from workbench import runs\n\nruns.open({str(subject.run.path)!r}).read_table('tables/candidates')\n"
    panels.figure("dose-of-tuning", drawn, code, dict(subject.run.manifest.provenance), frame=dose)
