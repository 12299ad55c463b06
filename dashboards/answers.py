"""Answers side by side, as text, with the first token that differs marked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from dashboards import panels
from dashboards.steering import Steered
from workbench.behaviour.first_difference import Parted

_BOX = (
    "white-space:pre-wrap;overflow-wrap:anywhere;max-height:20rem;overflow:auto;unicode-bidi:isolate;direction:ltr;"
    "font-family:'Source Code Pro',ui-monospace,monospace;font-size:0.875rem;line-height:1.5;"
    "border:1px solid rgba(128,128,128,0.25);border-radius:0.5rem;padding:0.6rem 0.75rem;margin:0"
)
_MARK = "background:#ffd8a8;color:#1a1a1a;border-bottom:2px solid #d9480f;border-radius:2px;padding:0 1px"


def box(text: str, parted: Parted | None = None) -> None:
    """A text that a model may have written, wrapped; the token at which it parts is marked."""
    if parted is None:
        inner = escape(panels.visible(text)) or "<i>(empty)</i>"
    else:
        token = escape(panels.visible(parted.token)) or "(ends here)"
        shown = token.replace("\n", "↵\n") if parted.token.strip() else token.replace("\n", "↵\n").replace(" ", "␣")
        inner = (
            f"{escape(panels.visible(parted.same))}"
            f'<mark style="{_MARK}" title="first token that differs">{shown}</mark>'
            f"{escape(panels.visible(parted.rest))}"
        )
    st.html(f'<div style="{_BOX}">{inner}</div>')


def side_by_side(result: Steered, side: str) -> None:
    """Base, tuned and steered answers, prompt by prompt."""
    for number, prompt in enumerate(result.prompts):
        parted = result.parted[number]
        st.text(f"{number + 1}. {panels.visible(prompt)}")
        titles = ("Base", "Tuned", f"Steered {side}")
        texts = (result.base[number], result.tuned[number], result.steered[number])
        for column, title, text in zip(st.columns(3), titles, texts, strict=True):
            with column:
                if title.startswith("Steered"):
                    said = "unchanged" if parted is None else f"changed at token {parted.place + 1}"
                    st.caption(f"{title}: {said}")
                    box(text, parted)
                else:
                    st.caption(title)
                    box(text)


def counted(result: Steered, beginning: str, side: str) -> None:
    """How many answers begin with a text: base, tuned, steered, each with its 95 % interval."""
    from workbench.stats.shares import share_interval

    wanted = beginning.strip()
    sides: dict[str, Sequence[str]] = {"Base": result.base, "Tuned": result.tuned, f"Steered {side}": result.steered}
    for column, (name, texts) in zip(st.columns(3), sides.items(), strict=True):
        found = share_interval([float(text.strip().startswith(wanted)) for text in texts])
        with column:
            st.metric(f"{name} begins with it", f"{found.estimate:.0%}", border=True)
            st.caption(f"95 % [{found.low:.0%}, {found.high:.0%}], n = {found.n} prompts")
