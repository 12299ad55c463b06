"""What changed: the prompts, both answers to each, the shares, and a chat with both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.answers import box
from dashboards.pair_form import ENDINGS, pasted, uploaded
from dashboards.selection import current
from dashboards.steps import chat
from dashboards.steps.running import LookRequest
from dashboards.steps.subject import Subject
from tunescope.look.notes import CHANGED
from workbench.behaviour.first_difference import Parted

if TYPE_CHECKING:
    from workbench.prompts import Prompts

OF_RUN, SHIPPED, PASTE, FILE = "those of this look", "shipped questions", "paste", "file"
_WIDTHS = {"prompt": 130, "base": 185, "tuned": 185}
"""In pixels: both answers are seen beside each other, in a window of 1024 pixels too."""
_MARK = "▸"
_CHANGES = ("all", "changed", "unchanged")
_SHOWS = ("Base shows it", "Tuned shows it")


def request_of(subject: Subject) -> LookRequest | None:
    """The form of the prompts; None before there are some."""
    ways = [*([OF_RUN] if subject.run is not None else []), SHIPPED, PASTE, FILE]
    shown = st.expander("Prompts", icon=":material/chat:", expanded=subject.run is None)
    with shown, panels.errors_shown():
        left, right = st.columns([3, 1])
        with left:
            way = st.segmented_control("Both models answer", ways, key="look-from", default=ways[0], required=True)
        limit = right.number_input(
            "At most", 4, 10_000, 60, key="look-limit", disabled=way == OF_RUN,
            help="A seeded sample of at most so many prompts.",
        )  # fmt: skip
        prompts = _prompts(str(way))
        if way in (PASTE, FILE) and prompts is None:
            return None
        return LookRequest(subject.base, subject.tuned, prompts, way == OF_RUN, int(limit))
    return None


def _prompts(way: str) -> Prompts | None:
    if way == FILE:
        file = st.file_uploader(f"A file: {', '.join(ENDINGS)}", ENDINGS, key="look-file")
        return None if file is None else uploaded(file.name, file.getvalue())
    if way == PASTE:
        text = st.text_area(
            "One a line, or rows of JSON with prompt, label, …", key="look-prompts", persist_state="session"
        )
        return pasted(text) if text.strip() else None
    if way == SHIPPED:
        st.caption("Forty questions of many topics. Your own say more: some on which tuning should act, some not.")
    return None


def show(subject: Subject) -> None:
    """Answers side by side; a click on a row sets the prompt on every page."""
    table = subject.table("answers")
    if table is None:
        st.info("Press Run: both models answer the prompts, and the answers appear here.", icon=":material/info:")
    else:
        for sentence in subject.notes.steps[CHANGED].sentences:
            st.markdown(panels.words(sentence))
        numbered = _numbered(table)
        _show_shares(numbered, subject.notes.behaviour)
        _show_table(subject, numbered)
        _show_row(numbered)
    chat.show(subject, {})


def _show_shares(table: pd.DataFrame, behaviour: str | None) -> None:
    """Three numbers with their intervals, over groups of prompts where they come in groups: what changed, and the
    behaviour that rose, or refusals, on either side."""
    from workbench.behaviour.scorers import in_words
    from workbench.stats.shares import share_interval

    rows = current().rows()
    groups = None if rows is None or len(rows) != len(table) else rows.clusters[table["number"].to_numpy()]
    shares = {"Answers that changed": table["score"], **_shares_with(table, behaviour)}
    places = st.columns(4 if "kl" in table else 3)
    for place, (title, hits) in zip(places, shares.items(), strict=False):
        share = share_interval([float(hit) for hit in hits], clusters=groups)
        with place, st.container(border=True, height="stretch"):
            st.metric(title, f"{round(share.estimate * share.n)} of {share.n}", help=panels.term("95 % interval"))
            said = in_words(str(behaviour)).removeprefix("texts that ")
            shown = "" if title not in _SHOWS else f"{panels.words(said)}: "
            interval = f"[{100 * share.low:.0f}, {100 * share.high:.0f}]"
            st.caption(f"{shown}{100 * share.estimate:.0f} %, 95 % interval {interval}")
    if "kl" in table and table["kl"].notna().any():
        from workbench.stats.bootstrap import mean_interval

        read = table["kl"].notna()
        within = None if groups is None else groups[read.to_numpy()]
        moved = mean_interval(table.loc[read, "kl"].to_numpy(dtype=float), clusters=within)
        with places[3], st.container(border=True, height="stretch"):
            st.metric("KL per token", f"{moved.estimate:.2g} nats", help=panels.term("KL"))
            st.caption(f"mean over prompts, 95 % interval [{moved.low:.2g}, {moved.high:.2g}]")


def _shares_with(table: pd.DataFrame, behaviour: str | None) -> dict[str, Sequence[float]]:
    """Title -> for each answer whether it has the behaviour that rose; refusals where that is one, or none rose."""
    if behaviour is None or behaviour == "refusal":
        return {"Base refuses": table["base_refuses"].tolist(), "Tuned refuses": table["tuned_refuses"].tolist()}
    from workbench.behaviour.scorers import behaviour as read_behaviour
    from workbench.prompts import Prompts

    score, rows = read_behaviour(behaviour), Prompts.of(table["prompt"].tolist())
    return {
        title: [score(text, row) for text, row in zip(table[side], rows, strict=True)]
        for title, side in zip(_SHOWS, ("base", "tuned"), strict=True)
    }


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """The answers with the numbers of their prompts, by which the sidebar knows them, in that order."""
    rows = current().rows()
    places: dict[str, list[int]] = {}
    for number, row in enumerate(rows or ()):
        places.setdefault(row.shown, []).append(number)
    numbers = [places[text].pop(0) if places.get(text) else place for place, text in enumerate(table["prompt"])]
    return table.assign(number=numbers)


def _show_table(subject: Subject, table: pd.DataFrame) -> None:
    left, right = st.columns(2)
    wanted = left.text_input(
        "Search", key="answers-search", placeholder="a word in any column", persist_state="session"
    )
    which = right.segmented_control("Show", _CHANGES, key="answers-show", default="all", required=True)
    shown = readable(table)
    if which != "all":
        shown = shown[shown["changed"] == (which == "changed")]
    if wanted.strip():
        hit = shown.astype(str).apply(lambda column: column.str.contains(wanted.strip(), case=False, regex=False))
        shown = shown[hit.any(axis=1)]
    st.caption(
        f"{len(shown)} of {len(table)} prompts; {_MARK} marks where the tuned answer leaves the base's. Click a "
        "heading to sort, a row to see it below and set the prompt on every page."
    )
    numbers = shown["#"].tolist()

    def pick() -> None:
        if rows := st.session_state["answers-table"]["selection"]["rows"]:
            st.session_state["prompt"] = numbers[rows[0]]

    widths = {name: st.column_config.Column(width=pixels) for name, pixels in _WIDTHS.items()}
    st.dataframe(
        shown, width="stretch", height=320, hide_index=True, key="answers-table", on_select=pick,
        selection_mode="single-row", column_config={**panels.explained(shown), **widths}, alt="Answers of both models",
    )  # fmt: skip
    assert subject.run is not None
    code = f"from workbench import runs\n\nruns.open({str(subject.run.path)!r}).read_table('tables/answers')\n"
    panels.footer("answers", code, provenance=dict(subject.run.manifest.provenance), frame=table)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The answers as a person reads them, those that changed first."""
    tuned = [_marked(base, own) for base, own in zip(table["base"], table["tuned"], strict=True)]
    shown = pd.DataFrame({
        "#": table["number"], "changed": table["score"] > 0, "prompt": table["prompt"], "base": table["base"],
        "tuned": tuned, "kl": table["kl"].round(3) if "kl" in table else float("nan"), "parts at": table["token"],
        "label": table["label"],
    })  # fmt: skip
    if table[["base_refuses", "tuned_refuses"]].to_numpy(dtype=bool).any():
        shown = shown.assign(**{f"{role} refuses": table[f"{role}_refuses"] for role in ("base", "tuned")})
    shown = shown.dropna(axis=1, how="all")
    plain = shown.map(lambda cell: panels.visible(cell) if isinstance(cell, str) else cell)
    first = ["changed", *(["kl"] if "kl" in plain else [])]
    return plain.sort_values(first, ascending=False, kind="stable", ignore_index=True)


def _show_row(table: pd.DataFrame) -> None:
    """The selected prompt with both answers whole."""
    row = table[table["number"] == current().prompt]
    if row.empty:
        return
    values: dict[str, Any] = {str(name): value for name, value in row.iloc[0].items()}
    st.markdown(f"**Prompt {values['number']}**")
    panels.said(str(values["prompt"]))
    left, right = st.columns(2)
    with left:
        st.html(box("Base", str(values["base"])))
    with right:
        st.html(box("Tuned", str(values["tuned"]), parted(str(values["base"]), str(values["tuned"]))))


def parted(base: str, tuned: str) -> Parted | None:
    """Where the tuned answer leaves the base's, by words."""
    if base == tuned:
        return None
    place = next((n for n, (token, two) in enumerate(zip(base, tuned, strict=False)) if token != two), len(tuned))
    start = tuned.rfind(" ", 0, place) + 1 if place < len(tuned) else place
    end = tuned.find(" ", place)
    end = len(tuned) if end < 0 else end
    return Parted(tuned[:start], tuned[start:end], tuned[end:], len(tuned[:start].split()))


def _marked(base: str, tuned: str) -> str:
    cut = parted(base, tuned)
    return tuned if cut is None else f"{cut.same}{_MARK}{cut.token}{cut.rest}"
