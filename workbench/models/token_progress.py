"""Tokens of a batch of texts, told to whoever listens as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from workbench.typing import Bool, Tensor

_UNKNOWN = 64
"""New tokens that are counted on where a call does not say how many there are at most."""


class TokensHeard(StoppingCriteria):  # type: ignore[misc]
    """Stops no text; after every new token it tells the share of them that is written."""

    def __init__(self, tell: Callable[[float], None], columns: int, new_tokens: int | None) -> None:
        """``columns``: of the prompts, with their padding."""
        self._tell, self._columns, self._new_tokens = tell, columns, new_tokens or _UNKNOWN

    def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Bool[Tensor, " row"]:
        self._tell((input_ids.shape[1] - self._columns) / self._new_tokens)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def heard(tell: Callable[[float], None], columns: int, call: dict[str, Any]) -> StoppingCriteriaList:
    """The stopping criteria of a call of ``generate``, and one that tells how far it is."""
    listening = TokensHeard(tell, columns, call.get("max_new_tokens"))
    return StoppingCriteriaList([*(call.get("stopping_criteria") or ()), listening])
