"""Which rows of a recording enter a mean over tokens: attention sinks are left out unless somebody asks for them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from workbench.errors import unknown_name
from workbench.typing import Bool

Tokens = Literal["content", "all"]
TOKENS = ("content", "all")


class Averaged(NamedTuple):
    """The rows of a mean over tokens."""

    rows: Bool[np.ndarray, " row"]
    text: str
    """What was averaged, for people."""


def averaged_rows(index: pd.DataFrame, tokens: Tokens = "content") -> Averaged:
    """Which rows of a recording's ``index`` a mean over tokens takes.

    ``"content"`` leaves out the first token of a prompt, special tokens and those of the chat template, wherever two or
    more prompt tokens of a prompt were recorded and one of them is content. A prompt recorded at one position keeps
    it: then somebody chose it. ``"all"`` takes every row.
    """
    if tokens not in TOKENS:
        raise unknown_name("choice of tokens", tokens, TOKENS)
    every = np.ones(len(index), dtype=bool)
    if tokens == "all":
        return Averaged(every, "all recorded tokens, sinks included")
    content = index["content"].to_numpy(dtype=bool) if "content" in index else index["position"].to_numpy() > 0
    prompt = np.unique(index["prompt"].to_numpy(), return_inverse=True)[1]
    count = int(prompt.max()) + 1 if len(prompt) else 0
    in_prompt = index["phase"].to_numpy() == "prompt" if "phase" in index else every
    several = np.bincount(prompt, weights=in_prompt, minlength=count) > 1
    holds_content = np.bincount(prompt, weights=content, minlength=count) > 0
    rows = content | ~(several & holds_content)[prompt]
    left_out = int((~rows).sum())
    if not left_out:
        return Averaged(rows, "all recorded tokens; none is a sink")
    return Averaged(
        rows, f"content tokens; {left_out} of {len(rows)} rows left out (first token, special, chat template)"
    )
