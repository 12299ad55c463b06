"""JSON as a person's data is read: nothing is guessed at, and whatever is wrong is one :class:`BadJson`."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from workbench.errors import UserError

_NO_TEXT = frozenset(map(chr, range(0xD800, 0xE000)))


class BadJson(ValueError):
    """What is wrong with a JSON text, in a few words."""


def read_json(text: str) -> Any:
    """The values in ``text``.

    Raises:
        BadJson: no JSON, a key twice in one object, NaN or Infinity (which JSON has not), a number of more than 4300
            digits or too large, nesting too deep, or half of a surrogate pair, which is no text.
    """
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise BadJson(f"{error.msg}, line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise BadJson("it is nested too deeply") from error
    except BadJson:
        raise
    except ValueError as error:
        raise BadJson("it holds a number of too many digits") from error
    if "\\u" in text or not _NO_TEXT.isdisjoint(text):
        check_text(json.dumps(data, ensure_ascii=False))
    return data


def check_text(text: str) -> None:
    """Raise :class:`BadJson` for a text that no file can hold: half of a surrogate pair stands in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadJson(f"it holds {half}, one half of a surrogate pair, which is no character") from error


def text_or_refuse(text: str, where: str) -> str:
    """``text``, or a :class:`UserError` that begins with ``where`` when it is none (:func:`check_text`)."""
    try:
        check_text(text)
    except BadJson as error:
        raise UserError(f"{where}: {error}; write it as UTF-8 text.") from error
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadJson(f"the key {twice!r} stands twice in one object")
    return values


def _no_number(word: str) -> NoReturn:
    raise BadJson(f"{word} is no JSON number; write null where a value is missing")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadJson(f"the number {digits[:20]} is too large")
    return number
