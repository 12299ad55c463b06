"""What stands between a plain prompt and its answer: read from the prompt's own examples, else from the tokenizer.

``"in -> out\nyes -> no\nbig ->"`` shows a space behind its arrows, ``"1+2=3\n4+5="`` shows none. Where a prompt shows
nothing, the tokenizer's own words decide: most were learnt with the space in front, those of Chinese without.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_INSIDE_ADDRESSES = ("SOLIDUS", "REVERSE SOLIDUS", "COMMERCIAL AT")
_RUN = re.compile(r"\w+|[^\w\s]+")


def joint_of(text: str, answer: str, tokenizer: Any) -> str:
    """What belongs between ``text`` and ``answer``: nothing, a space, or the blank that the prompt's examples have.

    Nothing where either brings a blank of its own.
    """
    if not text or text[-1].isspace() or answer[:1].isspace():
        return ""
    shown = _of_examples(text)
    if shown is None:
        shown = _of_likes(text, answer)
    return _of_tokenizer(text, answer, tokenizer) if shown is None else shown


def _of_examples(text: str) -> str | None:
    """What followed the prompt's last sign where that stood before; None where it did not."""
    tail = _RUN.findall(text)[-1]
    if tail[-1].isalnum() or tail[-1] == "_":
        before = [match for match in re.finditer(rf"(?<!\w){re.escape(tail)}(?!\w)", text) if match.end() < len(text)]
    else:
        before = [
            match
            for match in re.finditer(rf"(?<![^\w\s]){re.escape(tail)}(?![^\w\s])", text)
            if match.end() < len(text)
        ]
        attached = _attached(text, len(text) - len(tail))
        before = [match for match in before if _attached(text, match.start()) == attached] or before
    blanks = [re.match(r"\s*", text[match.end() :]) for match in before]
    blanks_found = [blank.group() for blank in blanks if blank is not None]
    if _is_quote(tail) and len(blanks_found) % 2 == 0:  # an opening quote follows the pattern of opening ones
        blanks_found = blanks_found[::2]
    return max(set(blanks_found), key=blanks_found.count) if blanks_found else None


def _of_likes(text: str, answer: str) -> str | None:
    """What the prompt puts between signs of these kinds; None where it shows none.

    An opening bracket or quote takes no blank behind it; that is what opening means.
    """
    tail = _RUN.findall(text)[-1]
    if _opens(text, tail) or (_is_quote(answer[0]) and text.count(answer[0]) % 2 == 1):  # which is then closed
        return ""
    wanted = (_kind(tail[-1]), _kind(answer[0]))
    attached = _attached(text, len(text) - len(tail))
    if answer[0].isalnum() and _begins_a_word(text, tail, answer, attached=attached):
        return ""
    runs = list(_RUN.finditer(text))
    spaced = joined = spaced_words = 0
    for run, following in pairwise(runs):
        blank = text[run.end() : following.start()]
        spaced_words += bool(blank) and _kind(following.group()[0]) == wanted[1]
        if (_kind(run.group()[-1]), _kind(following.group()[0])) != wanted:
            continue
        if wanted[0] == "sign" and _attached(text, run.start()) != attached:
            continue
        inside_a_word = not blank and wanted[0] == "sign" and attached
        spaced, joined = spaced + bool(blank), joined + (not blank and not inside_a_word)
    if spaced != joined:
        return " " if spaced > joined else ""
    if _is_wide(answer):
        return None
    if tail[-1].isalpha() and _is_cased(tail[-1]) and _is_cased(answer[0]):
        return " "  # two words of a script that has capitals
    if unicodedata.category(tail[-1]) == "Sm":  # a mathematical sign has the same on both sides
        return "" if attached else " "
    return " " if spaced_words else None


def _opens(text: str, tail: str) -> bool:
    """Whether the last sign opens something: a bracket, a quote or a question that stands upside down, or the doubled
    sign of markup (``**``) that was not opened before."""
    apart = not _attached(text, len(text) - len(tail))
    markup = len(tail) > 1 and set(tail) in ({"*"}, {"`"}) and apart
    return (
        unicodedata.category(tail[-1]) in ("Ps", "Pi")
        or unicodedata.name(tail[-1], "").startswith("INVERTED ")
        or (_is_quote(tail) and text.count(tail) % 2 == 1)
        or (markup and text.count(tail) % 2 == 1)
    )


def _begins_a_word(text: str, tail: str, answer: str, *, attached: bool) -> bool:
    """Whether the last sign is part of the word to come: a dash, underscore or apostrophe right behind one (``well-``),
    what parts an address or a path (``ann@``, ``https://``), a currency's or a number's sign, or a minus in front of a
    number.
    """
    kind, name = unicodedata.category(tail[-1]), unicodedata.name(tail[-1], "")
    if kind == "Sc":
        return answer[0].isdigit()
    before = text[: len(text) - len(tail)].rstrip()[-1:]
    if attached and name in _INSIDE_ADDRESSES:
        return True
    if kind == "Pc":
        return attached or len(tail) > 1
    if len(tail) > 1:
        return False
    if name == "NUMBER SIGN":  # one at the start of a line is a heading's
        return text[:-1].endswith(" ")
    if kind == "Pd":
        return attached or (answer[0].isdigit() and (before.isalpha() or not before))
    return attached and before.isalpha() and name in ("APOSTROPHE", "RIGHT SINGLE QUOTATION MARK")


def _of_tokenizer(text: str, answer: str, tokenizer: Any) -> str:
    """A space, unless the answer's script has none (it is written full width) or the answer is fewer tokens, or more
    frequent ones (of a lower id), without it; a token that is the space alone does not count.
    """
    if _is_wide(answer):
        return ""
    costs = {joint: _cost(text, joint + answer, tokenizer) for joint in (" ", "")}
    return min(costs, key=lambda joint: costs[joint])


def _cost(text: str, continuation: str, tokenizer: Any) -> tuple[int, int]:
    """How many tokens the whole has, and the id of the first that is new."""
    alone, both = (_ids(written, tokenizer) for written in (text, text + continuation))
    shared = next((n for n, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), min(len(alone), len(both)))
    new = both[shared:]
    if len(new) > 1 and continuation.lstrip()[0].isalnum() and not tokenizer.decode([new[0]]).strip():
        new = new[1:]
    return shared + len(new), new[0] if new else 0


def _ids(text: str, tokenizer: Any) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _attached(text: str, place: int) -> bool:
    """Whether the sign at ``place`` stands right behind a word."""
    return place > 0 and not text[place - 1].isspace()


def _is_cased(letter: str) -> bool:
    return letter.lower() != letter.upper()


def _is_wide(answer: str) -> bool:
    return unicodedata.east_asian_width(answer[0]) in "WF"


def _is_quote(tail: str) -> bool:
    return "QUOTATION MARK" in unicodedata.name(tail[-1], "")


def _kind(sign: str) -> str:
    """``digit``, the letters' script, or ``sign``."""
    if sign.isdigit():
        return "digit"
    return unicodedata.name(sign, "?").split()[0] if sign.isalpha() else "sign"
