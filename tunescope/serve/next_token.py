"""The next token of one row: the likeliest, or drawn by the row's own generator."""

from __future__ import annotations

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from workbench.typing import Float, Tensor


class NextToken:
    """Draws as Hugging Face's ``generate`` does for a single prompt after ``torch.manual_seed(seed)``."""

    def __init__(self, temperature: float, top_p: float, seed: int | None, device: torch.device) -> None:
        """``temperature`` 0: the likeliest token, the first of equals. ``seed`` None: another draw every time."""
        self._greedy = temperature == 0
        self._warp = LogitsProcessorList()
        if not self._greedy and temperature != 1:
            self._warp.append(TemperatureLogitsWarper(float(temperature)))
        if not self._greedy and top_p < 1:
            self._warp.append(TopPLogitsWarper(top_p))
        self._draws = torch.Generator(device)
        if seed is None:
            self._draws.seed()
        else:
            self._draws.manual_seed(seed)

    def __call__(self, logits: Float[Tensor, "1 vocab"]) -> int:
        """The token's id."""
        scores = logits.float()
        if self._greedy:
            return int(scores.argmax(-1))
        shares = self._warp(None, scores).softmax(-1)
        return int(torch.multinomial(shares, 1, generator=self._draws))
