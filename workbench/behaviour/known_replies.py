"""Greedy answers of plain models are written once while several analyses ask the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

Written = tuple[tuple[int, ...], bool]
"""Token ids of an answer, and whether the model ended it."""


class KnownReplies:
    """Model (hash of its weights) and prompt -> the longest greedy answer that was written, and to which limit."""

    def __init__(self) -> None:
        self._longest: dict[tuple[str, tuple[int, ...]], tuple[int, Written]] = {}

    def add(self, model: str, prompt: Sequence[int], limit: int, written: Written) -> None:
        """Keep an answer of at most ``limit`` tokens, unless a longer one is known."""
        key = (model, tuple(prompt))
        if key not in self._longest or self._longest[key][0] < limit:
            self._longest[key] = (limit, written)

    def of(self, model: str, prompt: Sequence[int], limit: int) -> Written | None:
        """The answer of at most ``limit`` tokens: greedy search writes the beginning of the longer one; None where it
        is not known so far."""
        limit_then, (ids, ended) = self._longest.get((model, tuple(prompt)), (0, ((), False)))
        if limit_then < limit and not ended:
            return None
        return ids[:limit], ended and len(ids) <= limit


_KNOWN: ContextVar[KnownReplies | None] = ContextVar("known greedy replies", default=None)


@contextmanager
def known_replies(replies: KnownReplies) -> Iterator[None]:
    """Inside, greedy answers of models that nothing is done to are taken from ``replies`` where they stand there, and
    put there where not. A model whose weights were written to (a null adapter, a training) is another model."""
    token = _KNOWN.set(replies)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def current() -> KnownReplies | None:
    """Those of the context that is open; None outside."""
    return _KNOWN.get()
