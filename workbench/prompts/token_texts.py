"""The texts of single tokens, decoded once per tokenizer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

_KNOWN: weakref.WeakKeyDictionary[Any, tuple[int, dict[int, str]]] = weakref.WeakKeyDictionary()
"""tokenizer -> (its size then, token id -> text)."""


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token by itself, as ``tokenizer.decode([id])`` gives it."""
    size = len(tokenizer)
    if tokenizer not in _KNOWN or _KNOWN[tokenizer][0] != size:  # tokens were added
        _KNOWN[tokenizer] = size, {}
    texts = _KNOWN[tokenizer][1]
    if new := [token for token in dict.fromkeys(ids) if token not in texts]:
        texts.update(zip(new, tokenizer.batch_decode([[token] for token in new]), strict=True))
    return [texts[token] for token in ids]
