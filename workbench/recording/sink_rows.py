"""Which rows of a recording enter a mean over tokens: attention sinks are left out unless somebody asks for them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from workbench.engine.sites import Site
from workbench.errors import unknown_name
from workbench.recording.recording import Recording
from workbench.typing import Bool

Tokens = Literal["content", "all"]
TOKENS = ("content", "all")
_STREAM = ("resid_pre", "resid_mid", "resid_post")
_MASSIVE = 20
"""How many times the median row's length is no content any more: known sinks are 100 times and more."""
_AT_ONCE = 2**24
"""Entries that are read at once."""


class Averaged(NamedTuple):
    """The rows of a mean over tokens."""

    rows: Bool[np.ndarray, " row"]
    text: str
    """What was averaged, for people."""


def averaged_rows(
    index: pd.DataFrame, tokens: Tokens = "content", massive: Bool[np.ndarray, " row"] | None = None
) -> Averaged:
    """Which rows of a recording's ``index`` a mean over tokens takes.

    ``"content"`` leaves out the first token of a prompt, special tokens, those of the chat template and ``massive``
    rows, wherever two or more prompt tokens of a prompt were recorded and one of them is content. A prompt recorded at
    one position keeps it: then somebody chose it. ``"all"`` takes every row.

    Args:
        index: one line for each row of the recording.
        tokens: content or all.
        massive: the rows that :func:`massive_rows` found.
    """
    if tokens not in TOKENS:
        raise unknown_name("choice of tokens", tokens, TOKENS)
    every = np.ones(len(index), dtype=bool)
    if tokens == "all":
        return Averaged(every, "all recorded tokens, sinks included")
    content = index["content"].to_numpy(dtype=bool) if "content" in index else index["position"].to_numpy() > 0
    named = content
    content = content if massive is None else content & ~massive
    prompt = np.unique(index["prompt"].to_numpy(), return_inverse=True)[1]
    count = int(prompt.max()) + 1 if len(prompt) else 0
    in_prompt = index["phase"].to_numpy() == "prompt" if "phase" in index else every
    several = np.bincount(prompt, weights=in_prompt, minlength=count) > 1
    holds_content = np.bincount(prompt, weights=content, minlength=count) > 0
    rows = content | ~(several & holds_content)[prompt]
    left_out = int((~rows).sum())
    if not left_out:
        return Averaged(rows, "all recorded tokens; none is a sink")
    why = "first token, special, chat template"
    if sinks := int((named & ~rows).sum()):
        why += f", and {sinks} more than {_MASSIVE} times as long as the median"
    return Averaged(rows, f"content tokens; {left_out} of {len(rows)} rows left out ({why})")


def massive_rows(recording: Recording) -> Bool[np.ndarray, " row"]:
    """Rows of the base whose residual stream is far longer than the median row's, at some recorded site.

    Models park sinks on other tokens than the first too: the first full stop or line break (Sun et al. 2024, "Massive
    Activations in Large Language Models"). One such row sets the scale of every mean over rows.
    """
    found = np.zeros(len(recording.index), dtype=bool)
    sites = [site for site in map(Site.parse, recording.sites) if site.kind in _STREAM] if not recording.moments else []
    for site in sites:
        rows = recording["base"][site.name]
        step = max(1, _AT_ONCE // max(1, int(rows.shape[-1])))
        parts = [rows[start : start + step].float().norm(dim=-1) for start in range(0, len(found), step)]
        length = torch.cat(parts).numpy()
        median = float(np.nanmedian(length)) if len(length) else 0.0
        found |= (length > _MASSIVE * median) & (median > 0)
    return found
