"""Recordings of planted states: one site, one row per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from workbench.recording.recording import Recording

SITE = "blocks.1.hook_resid_post"


def planted(
    base: torch.Tensor, tuned: torch.Tensor, labels: Sequence[Any], groups: Sequence[Any] | None = None
) -> Recording:
    """Both models' states [row, d] at the residual after layer 1."""
    n = len(labels)
    index = pd.DataFrame({
        "prompt": range(n), "position": 0, "token_id": 5, "token": "x", "phase": "prompt", "content": True,
        "group": [None] * n if groups is None else list(groups), "label": list(labels), "nonfinite": "",
    })  # fmt: skip
    config = {"roles": ["base", "tuned"], "sites": [SITE], "n_prompts": n, "prompts": "planted", "positions": "last"}
    return Recording(index, config, {"base": {SITE: base.float()}, "tuned": {SITE: tuned.float()}})
