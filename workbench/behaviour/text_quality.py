"""Readings of a text that need no judge: its words, how easy it is to read, its language, how often it repeats."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]+(?:\s|$)|\n{2,}")
_VOWELS = re.compile(r"[aeiouy]+")
_COMMON = {
    "en": "the of and to in is that it was for on are as with his they at be this have from or by not but what all "
    "were we when your can said there an which do their if will how you i my",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
    "hat dass sie nach wird bei ich wie aber noch wir du",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont mais avec ou "
    "son je vous nous elle être cette",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin "
    "sobre este yo usted está muy",
    "it": "di che e la il un a per è in una sono mi non si lo ma ho ti le con da come io questo qui più del della gli "
    "nel anche ci ha se",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
    "sua ou você eu isso",
    "nl": "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om hem dan zou of "
    "wat mijn men dit zo door over je",
}  # fmt: skip
_STOP = {code: frozenset(words.split()) for code, words in _COMMON.items()}
_SCRIPTS = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar",
    "HEBREW": "he", "DEVANAGARI": "hi", "THAI": "th",
}  # fmt: skip


def words_in(text: str) -> list[str]:
    """Words and numbers, lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def readability(text: str) -> float:
    """Flesch reading ease (Flesch 1948), of English: 206.835 - 1.015 words per sentence - 84.6 syllables per word.

    Syllables are groups of vowels, without a silent e. 0 for a text without words.
    """
    words = [word for word in words_in(text) if not word.isdigit()]
    if not words:
        return 0.0
    sentences = max(1, sum(1 for part in _SENTENCE_END.split(text) if _WORD.search(part)))
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * sum(map(_syllables, words)) / len(words)


def language(text: str) -> str:
    """Two letters: by its script, else by which language's commonest words it holds most of; ``"?"`` for none.

    English, German, French, Spanish, Italian, Portuguese and Dutch are told apart by words; Russian, Greek, Arabic,
    Hebrew, Hindi, Thai, Chinese, Japanese and Korean stand for their scripts.
    """
    letters = Counter(unicodedata.name(sign, "?").split()[0].split("-")[0] for sign in text if sign.isalpha())
    if not letters:
        return "?"
    if letters["HIRAGANA"] + letters["KATAKANA"] > 0.1 * letters.total():
        return "ja"
    script = letters.most_common(1)[0][0]
    if script != "LATIN":
        return _SCRIPTS.get(script, "?")
    words = words_in(text)
    counts = {code: sum(word in common for word in words) for code, common in _STOP.items()}
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] else "?"


def repeated_words(text: str, n: int = 3) -> float:
    """Share of the runs of ``n`` words that the text used before; 0 for fewer than two runs."""
    words = words_in(text)
    runs = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _syllables(word: str) -> int:
    silent = word.endswith("e") and not word.endswith("le") and len(word) > 2
    return max(1, len(_VOWELS.findall(word)) - silent)
