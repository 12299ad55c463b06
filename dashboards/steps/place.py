"""The selected head, beside the list of places: its effect, its layer's weights, what it looks at and writes."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from dashboards import panels
from dashboards.selection import current
from dashboards.steps.subject import Subject
from dashboards.views.head_reading import show_attention, show_words
from dashboards.views.source import request_of, steer_link
from workbench.tables import cell_text


def show(subject: Subject, tables: Mapping[str, pd.DataFrame]) -> None:
    """The numbers of the selected head.

    Args:
        subject: A pair with a look.
        tables: ``heads`` and ``weights``, as far as the look has them.
    """
    layer, head = current().layer, current().head
    st.markdown(f"**Head L{layer}H{head}**", help="Selected in the sidebar, in the list or on a map.")
    if "heads" in tables:
        st.markdown(panels.words(effect_of(tables["heads"], layer, head)))
    if "weights" in tables:
        st.markdown(panels.words(weights_of(tables["weights"], layer)))
    if subject.run is not None:
        with panels.errors_shown():
            steer_link(f"Steer with L{layer}H{head} switched off", heads=f"L{layer}H{head}=0")


def show_readings() -> None:
    """Where the selected head looks and what it writes, read on request."""
    selection = current()
    request = None
    with panels.errors_shown():
        request = request_of(selection, selection.layer, selection.head, selection.prompt)
    if request is None:
        return
    with panels.errors_shown():
        show_attention(selection, request)
    with panels.errors_shown():
        show_words(request)


def effect_of(heads: pd.DataFrame, layer: int, head: int) -> str:
    """What the head carries of the change, in a sentence.

    Args:
        heads: layer, head, score, low, high, control, q, and ``exact`` where some were only estimated.
        layer: Of the head.
        head: Its number.
    """
    here = heads[(heads["layer"] == layer) & (heads["head"] == head)].to_dict("records")
    if not here:
        return "No map has this head."
    row = here[0]
    way = "patched into the base" if row.get("exact", True) else "by gradients, not confirmed by patching"
    tested = f"; q = {cell_text(float(row['q']), 2)}" if pd.notna(row.get("q")) else ""
    beside = f"; random heads {row['control']:.0%}" if pd.notna(row.get("control")) else ""
    interval = f" [{row['low']:.0%}, {row['high']:.0%}]" if pd.notna(row.get("low")) else ""
    return f"Effect: {row['score']:.0%}{interval} of the change of the next word, {way}{beside}{tested}."


def weights_of(weights: pd.DataFrame, layer: int) -> str:
    """How far tuning moved the matrices of the layer's attention, in a sentence.

    Args:
        weights: layer, module, score.
        layer: Whose attention.
    """
    names = weights["module"].astype(str)
    is_attention = names.str.contains("attn|attention") & ~names.str.contains("norm")
    here = weights[(weights["layer"] == layer) & is_attention & (weights["score"] > 0)]
    if here.empty:
        return f"Weights: the attention of layer {layer} was not tuned."
    moved = here.sort_values("score", ascending=False).to_dict("records")
    named = ", ".join(f"{str(row['module']).rpartition('.')[2]} {row['score']:.2g}" for row in moved)
    return f"Weights of the attention of layer {layer}, relative change: {named}."
