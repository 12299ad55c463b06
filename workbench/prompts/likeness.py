"""When two texts say the same thing: case, spaces and punctuation aside."""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_KEPT = re.compile(r"(?<![^\W_])-(?=\d)|(?<=\d)%|(?<=[^\W\d_])#+(?!\w)")
"""Signs of what they stand at: a number's (-1), a percentage's, and names such as C#."""
_BETWEEN_DIGITS = re.compile(r"(?<=\d)\s*([^\w\s])\s*(?=\d)")


def likeness(text: str) -> str:
    """Text that is equal for near-duplicates.

    Letters are compared without case, runs of spaces and punctuation are one space, and signs that are not seen (zero
    width, soft hyphens, marks of direction) are none. Signs that are no punctuation (``+``, emoji), whatever stands
    between two digits, and a number's own sign are kept: ``3-5``, ``3*5`` and ``35`` are not alike, nor ``-1`` and
    ``1``, nor ``C#`` and ``C``. A text of punctuation alone is like itself only.
    """
    seen = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    plain = unicodedata.normalize("NFKC", seen).casefold()
    digits_kept_apart = _BETWEEN_DIGITS.sub(lambda match: _held(match[1]), plain)
    kept_apart = _KEPT.sub(lambda match: _held(match[0]), digits_kept_apart)
    words = _PUNCTUATION.sub(_space, kept_apart).split()
    return " ".join(words) if words else text


def _held(signs: str) -> str:
    return "".join(f" \0{ord(sign):x}\0 " for sign in signs)


def _space(match: re.Match[str]) -> str:
    sign = match[0]
    return " " if unicodedata.category(sign).startswith("P") else sign
