"""Turn it: every way to turn the behaviour as a row, best first, and one click to try it in the chat."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboards import jobs, panels
from dashboards.recipe_parts import LAYERS, Part, Saved, Weights
from dashboards.steps import chat, turn_comparison
from dashboards.steps.running import begin_dose
from dashboards.steps.subject import Subject
from tunescope.look.notes import TURN, dose_name
from workbench.tables import with_intervals

TUNING = "the tuning"


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
        if subject.notes.behaviour is not None:
            turn_comparison.show(subject)
        return
    st.markdown(f"**{panels.words(sentence_of(table, subject.notes.behaviour or ''))}**")
    _show_table(subject, table)
    for sentence in note.sentences[:-1]:
        st.caption(panels.words(sentence))
    _show_doses(subject, table)
    compared = turn_comparison.show(subject)
    chat.show(subject, {**parts_of(subject, table), **compared})


def sentence_of(table: pd.DataFrame, behaviour: str) -> str:
    """The best candidate in one plain sentence."""
    from workbench.behaviour.scorers import in_words

    tuned = table[table["candidate"] == "tuned"].iloc[0]
    tried = table[table["candidate"] != "tuned"]
    if tried.empty:
        return "Nothing was tried."
    best = tried.iloc[0]
    sentence = (
        f"{best['candidate']} leaves {in_words(behaviour)} on {best['share']:.0%} "
        f"[{best['low']:.0%}, {best['high']:.0%}] of the prompts that show it (tuned: {tuned['share']:.0%}"
    )
    sentence += ")" if pd.isna(best["random"]) else f"; random stand-ins: {best['random']:.0%})"
    if pd.notna(best["others_changed"]):
        sentence += f" and changes {best['others_changed']:.0%} of the other answers"
    return f"{sentence}."


def parts_of(subject: Subject, table: pd.DataFrame) -> dict[str, tuple[Part, str]]:
    """Candidate -> how it is made, and the side that it acts on; best first."""
    assert subject.run is not None
    parts: dict[str, tuple[Part, str]] = {}
    for name in table["candidate"]:
        file = subject.run.path / "recipes" / f"{name}.safetensors"
        about: dict[str, Any] = subject.notes.candidates.get(name, {})
        if file.is_file():
            parts[name] = (Saved(str(file)), "tuned")
        elif about.get("side") == "base":
            parts[name] = (Weights(LAYERS, float(about["scale"])), "base")
    return parts


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
        column_config={**panels.explained(shown), "random": st.column_config.Column(width=120)},
        alt="Ways to turn the behaviour",
    )  # fmt: skip
    st.caption(
        "adapter-0, weights-0: none of the tuning, -0.5 half of it, -1.5 half more. share: of the n prompts that show "
        "the behaviour, those that still do (0 none, 1 all). random: the same with "
        "random stand-ins (how much of the tuning has none here: see all ways, compared). others changed: of the "
        "other prompts, those whose answer is not the tuned model's. perplexity: of the other prompts' own texts. A "
        "click on a row takes it into the chat."
    )
    assert subject.run is not None
    code = f"from workbench import runs\n\nruns.open({str(subject.run.path)!r}).read_table('tables/candidates')\n"
    panels.footer("candidates", code, provenance=dict(subject.run.manifest.provenance), frame=table)


def dose_of(subject: Subject, table: pd.DataFrame) -> pd.DataFrame:
    """strength, estimate, low, high, n: how much of the tuning against the behaviour; 1 is the tuned model. ``side``,
    with no interval, is the perplexity of the other prompts' texts, where it is known."""
    scales = {name: candidate.get("scale") for name, candidate in subject.notes.candidates.items()} | {"tuned": 1.0}
    rows = table.assign(strength=table["candidate"].map(scales)).dropna(subset=["strength"])
    rows = rows.rename(columns={"share": "estimate"})
    sides = ["side", "side_low", "side_high"] if "perplexity" in rows and rows["perplexity"].notna().all() else []
    rows = rows.assign(**{name: rows["perplexity"] for name in sides})
    return rows[["strength", "estimate", "low", "high", "n", *sides]].sort_values("strength", ignore_index=True)


def _show_doses(subject: Subject, table: pd.DataFrame) -> None:
    """The dose curve of the tuning, or of the candidate that a person selects, which is swept on request."""
    assert subject.run is not None
    names = [name for name in table["candidate"] if (subject.run.path / "recipes" / f"{name}.safetensors").is_file()]
    scaled = [name for name in names if (subject.notes.candidates.get(name) or {}).get("scale") is not None]
    others = [name for name in names if name not in scaled]
    whole = [TUNING] if len(dose_of(subject, table)) > 1 else []
    if not whole and not others:
        return
    name = st.segmented_control("Dose of", [*whole, *others], key="dose-of", default=[*whole, *others][0],
                                required=True, format_func=panels.visible)  # fmt: skip
    if name == TUNING:
        _show_dose(subject, table)
    else:
        _show_dose_of(subject, str(name))


def _show_dose_of(subject: Subject, name: str) -> None:
    assert subject.run is not None
    file = subject.run.file(f"results/{dose_name(name)}.safetensors")
    busy = any(job.about == subject.key for job in jobs.desk().active)
    if not file.is_file():
        st.caption("The share of prompts that still show the behaviour at each strength, beside random stand-ins.")
        why_not = "A task of this pair is at work or in the queue." if busy else None
        if st.button(
            "Sweep its strength", icon=":material/play_arrow:", key="go-dose", disabled=busy,
            help=why_not or "Runs in the background; the curve stays with the look.",
        ):  # fmt: skip
            begin_dose(subject, name)
            st.rerun()
        return
    from workbench.results import Result

    dose: Any = Result.load(file)
    st.caption(panels.words(f"{dose.summary()}." if dose.control else f"{dose.summary()}; it has no stand-ins."))
    code = f"from workbench.results import Result\n\nResult.load({str(file)!r}).figure().show()\n"
    panels.figure(f"dose-{name}", dose.figure(), code, dict(subject.run.manifest.provenance), frame=dose.table)


def _show_dose(subject: Subject, table: pd.DataFrame) -> None:
    dose = dose_of(subject, table)
    if len(dose) < 2:
        return
    from workbench.behaviour.scorers import in_words
    from workbench.figures.behaviour_dose import dose_figure

    drawn = dose_figure(
        dose, metric=f"share of {panels.visible(in_words(subject.notes.behaviour or ''))}",
        side="perplexity of the others",
        title="How much of the tuning: 0 is the base, 1 as tuned",
    )  # fmt: skip
    drawn.update_xaxes(title={"text": "how much of the tuning"}, row=2 if "side" in dose else 1, col=1)
    drawn.update_layout(showlegend=False)  # its lines are named at the axes
    assert subject.run is not None
    code = f"from workbench import runs\n\nruns.open({str(subject.run.path)!r}).read_table('tables/candidates')\n"
    panels.figure("dose-of-tuning", drawn, code, dict(subject.run.manifest.provenance), frame=dose)
