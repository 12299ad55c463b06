"""Where two texts part: what they share, and the first token that differs."""

from __future__ import annotations

from typing import Any, NamedTuple


class Parted(NamedTuple):
    """A text cut at the first token in which it differs from another: ``same + token + rest`` is the text."""

    same: str
    token: str
    """Empty where the text simply ends before the other."""
    rest: str
    place: int
    """How many tokens are the same."""


def first_difference(text: str, other: str, tokenizer: Any) -> Parted | None:
    """Cut ``text`` at its first token that ``other`` does not have in the same place; None for equal texts.

    Both are put through the tokenizer again, without special tokens, so a token means what a reader of the text would
    call one; a slow tokenizer, which does not know where its tokens lie, cuts at characters.
    """
    if text == other:
        return None
    if not getattr(tokenizer, "is_fast", False):
        return _at_character(text, other)
    mine = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, others = list(mine["input_ids"]), list(tokenizer(other, add_special_tokens=False)["input_ids"])
    place = _common(ids, others)
    if place == len(ids):
        return Parted(text, "", "", place) if other.startswith(text) else _at_character(text, other)
    start, end = mine["offset_mapping"][place]
    return Parted(text[:start], text[start:end], text[end:], place)


def _at_character(text: str, other: str) -> Parted:
    place = _common(text, other)
    return Parted(text[:place], text[place : place + 1], text[place + 1 :], place)


def _common(left: Any, other: Any) -> int:
    """Length of the common beginning."""
    for place, (first, second) in enumerate(zip(left, other, strict=False)):
        if first != second:
            return place
    return min(len(left), len(other))
