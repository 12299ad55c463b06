"""Reversible codes: a question in a form that tuning data hardly ever has, and its way back."""

from __future__ import annotations

import base64
import binascii
import codecs
from collections.abc import Callable
from dataclasses import dataclass

_LEET = str.maketrans("aeiotsAEIOTS", "431075431075")
_PLAIN = {"4": "a", "3": "e", "1": "i", "0": "o", "7": "t", "5": "s"}
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Code:
    """``back(there(text))`` is the text (for leetspeak, in lower case and without digits of its own)."""

    name: str
    there: Callable[[str], str]
    back: Callable[[str], str]


def _leet_back(text: str) -> str:
    return "".join(_PLAIN.get(sign, sign) for sign in text.lower())


def _spaced(text: str) -> str:
    return "-".join(text)


def _unspaced(text: str) -> str:
    return text[::2] if set(text[1::2]) <= {"-"} else text.replace("-", "")


def _reversed(text: str) -> str:
    return " ".join(word[::-1] for word in text.split(" "))


def _pig(text: str) -> str:
    return " ".join(_pig_word(word) for word in text.split(" "))


def _pig_word(word: str) -> str:
    """The consonants before the first vowel go behind a dash to the end, so that the way back is exact."""
    start = next((place for place, sign in enumerate(word) if sign.lower() in _VOWELS), len(word))
    return f"{word[start:]}-{word[:start]}ay" if word else word


def _unpig(text: str) -> str:
    return " ".join(_unpig_word(word) for word in text.split(" "))


def _unpig_word(word: str) -> str:
    stem, dash, rest = word.rpartition("-")
    return f"{rest[:-2]}{stem}" if dash and rest.endswith("ay") else word


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _unbase64(text: str) -> str:
    try:
        return base64.b64decode(text.encode(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return text


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


CODES: dict[str, Code] = {
    code.name: code
    for code in (
        Code("leetspeak", lambda text: text.translate(_LEET), _leet_back),
        Code("dashes", _spaced, _unspaced),
        Code("reversed words", _reversed, _reversed),
        Code("pig latin", _pig, _unpig),
        Code("rot13", _rot13, _rot13),
        Code("base64", _base64, _unbase64),
    )
}
"""Name -> the code."""
