"""Attributes of a text that are counted, not judged: the exact scale for dials (fine-grained linguistic control)."""

from __future__ import annotations

import re
from collections.abc import Callable

from workbench.behaviour.text_quality import readability, repeated_words, words_in

_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)|\n{2,}")
_PUNCTUATION = re.compile(r"[^\w\s]")
_PRONOUNS = frozenset(
    "i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours "
    "ourselves they them their theirs themselves".split()
)
_ARTICLES = frozenset(("a", "an", "the"))
_PREPOSITIONS = frozenset(
    "about above across after against along among around at before behind below beneath beside between beyond by down "
    "during for from in inside into near of off on onto out outside over past since through throughout to toward under "
    "until up upon with within without".split()
)
_CONJUNCTIONS = frozenset("and but or nor so yet because although though while if unless whereas since".split())
_AUXILIARIES = frozenset(
    "am is are was were be been being have has had do does did will would shall should can could may might must".split()
)


def _share_of(words: frozenset[str]) -> Callable[[str], float]:
    def share(text: str) -> float:
        said = words_in(text)
        return sum(word in words for word in said) / len(said) if said else 0.0

    return share


def sentence_length(text: str) -> float:
    """Words per sentence."""
    sentences = max(1, sum(1 for part in _SENTENCE_END.split(text) if words_in(part)))
    return len(words_in(text)) / sentences


def word_length(text: str) -> float:
    """Letters per word."""
    words = words_in(text)
    return sum(map(len, words)) / len(words) if words else 0.0


def punctuation(text: str) -> float:
    """Punctuation marks per word."""
    return len(_PUNCTUATION.findall(text)) / max(1, len(words_in(text)))


def capitals(text: str) -> float:
    """Share of letters that are capitals."""
    letters = [sign for sign in text if sign.isalpha()]
    return sum(sign.isupper() for sign in letters) / len(letters) if letters else 0.0


def variety(text: str) -> float:
    """Share of the words that the text has not used before."""
    words = words_in(text)
    return len(set(words)) / len(words) if words else 0.0


def digits(text: str) -> float:
    """Share of the words that are numbers."""
    words = words_in(text)
    return sum(word.isdigit() for word in words) / len(words) if words else 0.0


ATTRIBUTES: dict[str, tuple[str, Callable[[str], float]]] = {
    "sentence_length": ("words per sentence", sentence_length),
    "word_length": ("letters per word", word_length),
    "punctuation": ("punctuation marks per word", punctuation),
    "capitals": ("share of letters that are capitals", capitals),
    "variety": ("share of words that are new in the text", variety),
    "digits": ("share of words that are numbers", digits),
    "questions": ("question marks per word", lambda text: text.count("?") / max(1, len(words_in(text)))),
    "exclamations": ("exclamation marks per word", lambda text: text.count("!") / max(1, len(words_in(text)))),
    "pronouns": ("share of words that are pronouns (English)", _share_of(_PRONOUNS)),
    "articles": ("share of words that are articles (English)", _share_of(_ARTICLES)),
    "prepositions": ("share of words that are prepositions (English)", _share_of(_PREPOSITIONS)),
    "conjunctions": ("share of words that are conjunctions (English)", _share_of(_CONJUNCTIONS)),
    "auxiliaries": ("share of words that are auxiliary verbs (English)", _share_of(_AUXILIARIES)),
}
"""Name -> (what it counts, of a text). Closed classes of words stand for parts of speech, which need no tagger."""


def profile(text: str) -> dict[str, float]:
    """Every attribute of a text, with its length, readability and repetition.

    Example:
        ``profile("Is it? Yes!")["questions"]``
    """
    counts = {"length": float(len(words_in(text))), "readability": readability(text)}
    counts["repetition"] = repeated_words(text)
    return counts | {name: count(text) for name, (_, count) in ATTRIBUTES.items()}
