"""What one head looks at and what it writes, each read in both models when its button is pressed."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import panels
from dashboards.as_experiment import written_out
from dashboards.selection import Selection
from dashboards.views import live
from dashboards.views.source import Request, Source, made, prompt_of, show_prompt
from dashboards.work_on_button import Work, on_button
from workbench.progress import Progress

MOST_PROMPTS = 64
"""Whose writes are read."""
_ATTENTION = Work(
    "attention", "Read attention", "Reading the pattern in both models…",
    "Press Read attention: where this head looks on the selected prompt, in both models, appears here.",
)  # fmt: skip
_WORDS = Work(
    "words", "Read what it writes", "Reading the head's write in both models…",
    "Press Read what it writes: the tokens that this head raises and lowers appear here.",
)  # fmt: skip


def show_attention(selection: Selection, request: Request) -> None:
    """Its pattern on the selected prompt in both models, and the difference."""
    st.subheader("Where it looks")
    show_prompt(request, selection.prompt)
    done = on_button(_ATTENTION, request, _read_attention)
    if done is None:
        return
    from workbench.figures.attention import attention_panels

    of, seen = done
    layer, head, number = of.what
    title = f"L{layer}H{head} on prompt {number}: attention of {len(seen.tokens)} tokens (n = 1 prompt)"
    if seen.left_out:
        st.caption(f"The last {len(seen.tokens)} tokens are shown; {seen.left_out} before them are not.")
    code = of.python(number) + (
        "from workbench.figures.attention import attention_panels\n\n"
        f"rec = wb.record(pair, prompts, 'pattern', layers=[{layer}], positions='all')\n"
        f"base, tuned = (rec[role]['pattern', {layer}][:][:, {head}].float().numpy() for role in ('base', 'tuned'))\n"
        "attention_panels(base, tuned, list(rec.index['token'])).show()\n"
    )
    drawn = attention_panels(seen.base, seen.tuned, seen.tokens, title=title)
    step = {"do": "record", "sites": ["pattern"], "layers": [layer], "positions": "all"}
    panels.figure(
        "attention", drawn, code, of.provenance(), frame=seen.frame(),
        experiment=lambda: of.experiment("attention", step, written_out(of.prompts[number : number + 1])),
    )  # fmt: skip


def _read_attention(request: Request, _progress: Progress) -> live.Patterns:
    layer, head, number = request.what
    return live.read_patterns(request.pair(), prompt_of(request, number), layer, head)


def show_words(request: Request) -> None:
    """The tokens that its write raises and lowers, in both models."""
    st.subheader("What it writes")
    st.caption(
        "The head's write at the last token, read through the model's final norm and unembedding: logits with it minus "
        f"logits without it, mean over the first {min(len(request.prompts), MOST_PROMPTS)} prompts."
    )
    done = on_button(
        _WORDS, Request(request.base, request.tuned, request.prompts, request.what[:2], request.file), _read_words
    )
    if done is None:
        return
    of, result = done
    layer, head = of.what
    call = f"result = probes.head_words(pair, prompts[:{MOST_PROMPTS}], {layer}, {head})\n"
    step = {"do": "probe", "call": "head_words", "options": {"layer": layer, "head": head}}
    source = Source(
        "words", result, f"{of.python()}import probes\n\n{call}", made(result),
        lambda: of.experiment("words", step, of.rows(limit=MOST_PROMPTS)),
    )  # fmt: skip
    drawn = result.figure()
    panels.figure(
        "words", drawn, f"{source.python}result.figure().show()\n", source.provenance, frame=result.frame(),
        experiment=source.experiment,
    )  # fmt: skip


def _read_words(request: Request, _progress: Progress) -> Any:
    import probes

    return probes.head_words(request.pair(), request.prompts[:MOST_PROMPTS], *request.what)
