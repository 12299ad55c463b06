"""When two texts say the same thing: case, spaces and punctuation aside."""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)\s*([^\w\s])\s*(?=\d)")


def likeness(text: str) -> str:
    """Text that is equal for near-duplicates.

    Letters are compared without case, runs of spaces and punctuation are one space. Signs that are no punctuation
    (``+``, emoji), and whatever stands between two digits, are kept: ``3-5``, ``3*5`` and ``35`` are not alike. A text
    of punctuation alone is like itself only.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    digits_kept_apart = _BETWEEN_DIGITS.sub(lambda match: f" \0{ord(match[1]):x}\0 ", plain)
    words = _PUNCTUATION.sub(_space, digits_kept_apart).split()
    return " ".join(words) if words else text


def _space(match: re.Match[str]) -> str:
    sign = match[0]
    return " " if unicodedata.category(sign).startswith("P") else sign
