"""Tokens: where the two models part, token by token, and what every layer would already say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.selection import Selection
from dashboards.views.source import (
    LINKED,
    Probe,
    Request,
    Source,
    opened,
    request_of,
    result_table,
    rows_of,
    show_prompt,
    stored_or_computed,
)
from dashboards.work_on_button import Work
from workbench.progress import Progress

NEW_TOKENS = 8
LENS_TOKENS = 16
"""Of the selected prompt by itself: a reading costs a row of the vocabulary for each layer and model."""
MOST_PROMPTS = 100
LONGEST = 400
FULL_RANK = 20.0
KL, RANK = "KL", "Rank"
_UNITS = {
    KL: "KL of writer from judge at this token (nats)",
    RANK: f"places below the judge's first choice (full colour: {FULL_RANK:.0f} or more)",
}
_LENS = Work(
    "lens", "Read the layers", "Reading every layer of both models…",
    "Press Read the layers: what each layer of both models would say at every token appears here.",
)  # fmt: skip
_SHIFT = Work(
    "shift", "Compare answers", "Both models answer, and each ranks the other's tokens…",
    "Press Compare answers: each model continues the prompts and the other ranks every token.",
)  # fmt: skip


def show() -> None:
    """The page."""
    st.title("Tokens")
    st.caption("Where base and tuned model part, token by token.")
    selection = opened()
    if selection is None:
        return
    request = None
    with panels.errors_shown():
        request = request_of(selection)
        if request is not None:
            show_prompt(request, selection.prompt)
    st.header("The selected prompt, layer by layer")
    with panels.errors_shown():
        lens = Probe(
            lambda request: f"probes.logit_lens(pair, prompts, shown=len(prompts), positions={_positions(request)!r})",
            _run_lens,
            lambda request: {"do": "probe", "call": "logit_lens", "options": {
                "shown": len(rows_of(request)), "positions": _positions(request)
            }},
        )  # fmt: skip
        if (source := stored_or_computed(selection, request, "LogitLens", lens, _LENS)) is not None:
            _show_lens(source, selection)
    st.header("What each model writes")
    with panels.errors_shown():
        shift = Probe(
            lambda _: f"probes.token_shift(pair, prompts, max_new_tokens={NEW_TOKENS})", _run_shift,
            lambda _: {"do": "probe", "call": "token_shift", "options": {"max_new_tokens": NEW_TOKENS}},
        )  # fmt: skip
        if (source := stored_or_computed(selection, request, "TokenShift", shift, _SHIFT)) is not None:
            _show_shift(source, selection, request)


def _positions(request: Request) -> str:
    """Of one prompt by itself the last tokens, which are read at once; of all prompts every token."""
    return f"prompt[-{LENS_TOKENS}:]" if request.what else "all"


def _run_lens(request: Request, progress: Progress) -> Any:
    import probes

    rows = rows_of(request)
    result = probes.logit_lens(request.pair(), rows, shown=len(rows), positions=_positions(request), progress=progress)
    return replace(result, cells=result.cells.assign(prompt=request.what[0])) if request.what else result


def _run_shift(request: Request, progress: Progress) -> Any:
    import probes

    result = probes.token_shift(request.pair(), rows_of(request), max_new_tokens=NEW_TOKENS, progress=progress)
    return replace(result, tokens=result.tokens.assign(prompt=request.what[0])) if request.what else result


def _show_lens(source: Source, selection: Selection) -> None:
    result = source.result
    cells = result.cells[result.cells["prompt"] == selection.prompt]
    if cells.empty:
        st.info(
            f"This result keeps the grids of prompts 0 to {result.cells['prompt'].max()}; prompt {selection.prompt} is "
            "not among them. Choose one of those in the sidebar.", icon=":material/info:",
        )  # fmt: skip
        return
    last = cells[(cells["layer"] == cells["layer"].max()) & (cells["model"] == "tuned")].sort_values("position")
    limit = float(last["kl"].max())  # of this prompt: beside one that moved far all others would be white
    _coloured(last["token"], last["kl"], "KL of tuned from base (nats) after this token", limit, list(last["top"]))
    call = f"result.figure({0 if source.alone else selection.prompt}).show()\n"
    panels.figure(
        "lens", result.figure(selection.prompt), source.python + call, source.provenance, frame=cells,
        experiment=source.experiment,
    )  # fmt: skip
    if source.alone:
        st.caption(f"One prompt, its last {LENS_TOKENS} tokens: no interval and no test. All prompts give them.")
        return
    st.caption(panels.words(f"Over all prompts (n = {result.provenance.n_prompts}): {result.summary()}."))
    result_table("lens-layers", source, result.frame(), "result.frame()")


def _show_shift(source: Source, selection: Selection, request: Request | None) -> None:
    result = source.result
    if source.alone:
        st.caption("One prompt: no interval and no test. All prompts give them.")
    else:
        st.caption(panels.words(f"n = {result.provenance.n_prompts} prompts. {result.summary()}."))
    left, right = st.columns([3, 2])
    writers = list(dict.fromkeys(result.tokens["direction"]))
    writer = left.segmented_control("Who writes", writers, key="writer", required=True, default=writers[0], **LINKED)
    measure = right.segmented_control("Colour", [KL, RANK], key="colour", required=True, default=KL, **LINKED)
    rows = result.tokens[result.tokens["direction"] == writer]
    known = request is not None and (source.alone or result.provenance.prompts == request.prompts.hash)
    _answers(
        selection, rows, str(measure), [str(row) for row in request.prompts] if request is not None and known else []
    )
    code = source.python + f"result.tokens[result.tokens['direction'] == {writer!r}]\n"
    panels.footer("answers", code, provenance=source.provenance, frame=rows, experiment=source.experiment)
    if source.alone:
        return
    panels.figure(
        "shift", result.figure(), source.python + "result.figure().show()\n", source.provenance, frame=result.shares,
        experiment=source.experiment,
    )  # fmt: skip
    result_table("shift-positions", source, result.frame(), "result.frame()")


def _answers(selection: Selection, rows: pd.DataFrame, measure: str, prompts: list[str]) -> None:
    """The answer to the selected prompt, then the others; each a line of coloured tokens."""
    from workbench.figures.tokens import token_lines_html

    order = sorted(dict.fromkeys(rows["prompt"]), key=lambda number: number != selection.prompt)
    lines = []
    for number in order[:MOST_PROMPTS]:
        part = rows[rows["prompt"] == number].sort_values("position")
        text = prompts[int(number)] if number < len(prompts) else ""
        values = part["kl"] if measure == KL else part["rank"] - 1.0
        notes = [f"rank {rank}, {kind}" for rank, kind in zip(part["rank"], part["kind"], strict=True)]
        lines.append((f"{number}: {text[-LONGEST:]}", list(part["token"]), [float(value) for value in values], notes))
    limit = float(rows["kl"].max()) if measure == KL else FULL_RANK
    st.html(token_lines_html(
        lines, unit=_UNITS[measure], limit=limit or 1.0, chosen=0 if order and order[0] == selection.prompt else None
    ))  # fmt: skip
    if len(order) > MOST_PROMPTS:
        st.caption(f"{len(order) - MOST_PROMPTS} more prompts are in the CSV.")


def _coloured(tokens: Any, values: Any, unit: str, limit: float, notes: list[str]) -> None:
    from workbench.figures.tokens import token_html

    numbers = [float(value) for value in values]
    st.html(token_html([str(token) for token in tokens], numbers, unit=unit, limit=limit or 1.0, notes=notes))


show()
