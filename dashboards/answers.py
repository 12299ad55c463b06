"""Answers side by side, as text, with the first token that differs marked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import streamlit as st

from dashboards import panels
from dashboards.steering import Steered, Swept
from workbench.behaviour.first_difference import Parted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from dashboards.chatting import ChatReply

_WRAP = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;direction:ltr"
_GRID = "display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:0.75rem;margin:0.35rem 0 1.1rem"
_FLOW = _GRID.replace("repeat(3,minmax(0,1fr))", "repeat(auto-fill,minmax(9.5rem,1fr))")
_CELL = "border:1px solid rgba(128,128,128,0.3);border-radius:0.5rem;padding:0.45rem 0.75rem 0.6rem"
_TITLE = "font-size:0.8rem;opacity:0.65;margin-bottom:0.2rem"
_TEXT = (
    f"{_WRAP};max-height:18rem;overflow:auto;font-family:'Source Code Pro',ui-monospace,monospace;"
    "font-size:0.875rem;line-height:1.5"
)
_PROMPT = f"{_WRAP};max-height:8rem;overflow:auto;font-weight:600"
_UNSURE = 0.5
"""Tokens of a lower probability are underlined."""
_MARK = "background:#ffd8a8;color:#1a1a1a;border-bottom:2px solid #d9480f;border-radius:2px;padding:0 1px"


def box(title: str, text: str, parted: Parted | None = None) -> str:
    """The HTML of a text that a model may have written, wrapped; the token at which it parts is marked."""
    if parted is None:
        inner = escape(panels.visible(text)) or "<i>(empty)</i>"
    else:
        token = escape(panels.visible(parted.token).replace("\n", "↵\n")) or "(ends here)"
        shown = token if parted.token.strip() else token.replace(" ", "␣")
        inner = (
            f"{escape(panels.visible(parted.same))}"
            f'<mark style="{_MARK}" title="first token that differs">{shown}</mark>'
            f"{escape(panels.visible(parted.rest))}"
        )
    return f'<div style="{_CELL}"><div style="{_TITLE}">{escape(title)}</div><div style="{_TEXT}">{inner}</div></div>'


def hover_tokens(answer: ChatReply, other: ChatReply) -> str:
    """An answer token by token: its probability and the most likely ones on hover, unlikely tokens underlined, and the
    first that ``other`` does not have marked."""
    place = next(
        (n for n, (first, two) in enumerate(zip(answer.tokens, other.tokens, strict=False)) if first != two),
        min(len(answer.tokens), len(other.tokens)),
    )
    spans = []
    for number, token in enumerate(answer.tokens):
        share = answer.probabilities[number]
        hover = escape(panels.visible(f"{share:.1%}; most likely: {answer.top[number]}"), quote=True)
        style = _MARK if number == place else "border-bottom:1px dotted #999" if share < _UNSURE else ""
        spans.append(f'<span style="{style}" title="{hover}">{escape(panels.visible(token))}</span>')
    return f'<div style="{_CELL}"><div style="{_TEXT}">{"".join(spans) or "<i>(empty)</i>"}</div></div>'


def what_was_read(result: Steered) -> None:
    """The text of each prompt as the model read it, template and all, and its token ids."""
    with st.expander("What the model read", icon=":material/data_array:"):
        for number, (text, ids) in enumerate(result.reads, 1):
            st.html(f'<div style="{_TITLE}">{number}. {len(ids)} tokens</div>' + box("text", text))
            st.code(" ".join(map(str, ids)), language=None, wrap_lines=True)


def side_by_side(result: Steered, side: str) -> None:
    """Base, tuned and steered answers, prompt by prompt."""
    rows = []
    for number, prompt in enumerate(result.prompts):
        parted = result.parted[number]
        said = "unchanged" if parted is None else f"changed at token {parted.place + 1}"
        cells = [
            box("Base", result.base[number]),
            box("Tuned", result.tuned[number]),
            box(f"Steered {side} · {said}", result.steered[number], parted),
        ]
        head = f'<div style="{_PROMPT}">{number + 1}. {escape(panels.visible(prompt))}</div>'
        rows.append(f'{head}<div style="{_GRID}">{"".join(cells)}</div>')
    st.html("".join(rows))


def by_strength(result: Swept) -> None:
    """The answers to each prompt, one box per strength."""
    rows = []
    for number, prompt in enumerate(result.prompts):
        head = f'<div style="{_PROMPT}">{number + 1}. {escape(panels.visible(prompt))}</div>'
        cells = [
            box(f"× {strength:g}", text) for strength, text in zip(result.strengths, result.texts[number], strict=True)
        ]
        rows.append(f'{head}<div style="{_FLOW}">{"".join(cells)}</div>')
    st.html("".join(rows))


def dose(result: Swept, beginning: str) -> pd.DataFrame:
    """strength, estimate, low, high, n: the share of answers that begin with a text, with its 95 % interval."""
    import pandas as pd

    from workbench.stats.shares import share_interval

    lines = []
    for place, strength in enumerate(result.strengths):
        hits = [float(texts[place].strip().startswith(beginning.strip())) for texts in result.texts]
        lines.append({"strength": strength, **share_interval(hits)._asdict()})
    return pd.DataFrame(lines).sort_values("strength", ignore_index=True)


def counted(result: Steered, beginning: str, side: str, clusters: np.ndarray | None = None) -> None:
    """How many answers begin with a text: base, tuned, steered, each with its 95 % interval, over groups of prompts
    where they come in groups (``clusters`` [prompt])."""
    from workbench.stats.shares import share_interval

    wanted = beginning.strip()
    sides: dict[str, Sequence[str]] = {"Base": result.base, "Tuned": result.tuned, f"Steered {side}": result.steered}
    for column, (name, texts) in zip(st.columns(3), sides.items(), strict=True):
        interval = share_interval([float(text.strip().startswith(wanted)) for text in texts], clusters=clusters)
        with column, st.container(border=True):
            hits = round(interval.estimate * interval.n)
            st.metric(f"{name}: “{panels.words(beginning)} …”", f"{hits} of {interval.n}")
            st.caption(
                f"{100 * interval.estimate:.0f} %, 95 % interval [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
            )
