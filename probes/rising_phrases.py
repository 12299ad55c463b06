"""Words that more of the tuned model's answers have somewhere, and the base's answers hardly ever."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import pandas as pd
from scipy.stats import fisher_exact

from workbench.stats.fdr import q_values

LONGEST = 4
"""Words of a phrase."""
FEWEST = 3
"""Answers that must have a phrase."""
HARDLY = 0.05
"""Share of the base's answers that may have it: what the base says often is no mark of the tuning."""
_BETWEEN = re.compile(r"[^\w\s'’-]+|\n+")
COLUMNS = ("phrase", "base", "tuned", "p", "q")


def rising_phrases(prompts: Sequence[str], base: Sequence[str], tuned: Sequence[str]) -> pd.DataFrame:
    """Phrases of one to four words, within a clause, that more answers of ``tuned`` have, the most surprising first.

    A phrase whose words stand in the prompt does not count in its answer: that is an answer about the topic. Of phrases
    that are in the same number of answers and one within the other, only the longer stays; of others in as many
    answers, the one that comes first in them leads.

    Args:
        prompts: What was asked.
        base: The base model's answers.
        tuned: The tuned model's answers.

    Returns:
        phrase (as ``contains:`` takes it), base and tuned (answers that have it), p (Fisher's exact test, one-sided)
        and q.
    """
    before = Counter(phrase for prompt, text in zip(prompts, base, strict=True) for phrase in _places(prompt, text))
    after: Counter[str] = Counter()
    place: defaultdict[str, int] = defaultdict(int)
    written: dict[str, str] = {}
    for prompt, text in zip(prompts, tuned, strict=True):
        for phrase, (word, as_written) in _places(prompt, text).items():
            after[phrase] += 1
            place[phrase] += word
            written.setdefault(phrase, as_written)
    n = len(tuned)
    within = {part for phrase, count in after.items() for part in _shortened(phrase) if after[part] == count}
    lines = []
    for phrase, count in after.items():
        if count < max(FEWEST, before[phrase] + 1) or before[phrase] > HARDLY * n or phrase in within:
            continue
        table = [[count, n - count], [before[phrase], n - before[phrase]]]
        p = float(fisher_exact(table, alternative="greater").pvalue)
        lines.append(
            {"phrase": written[phrase], "base": before[phrase], "tuned": count, "p": p, "place": place[phrase] / count}
        )
    phrases = pd.DataFrame(lines, columns=[*COLUMNS[:-1], "place"])
    phrases["q"] = q_values(phrases["p"].to_numpy(dtype=float)) if lines else phrases["p"]
    return phrases.sort_values(["p", "place"], ignore_index=True)[list(COLUMNS)]


def _places(prompt: str, text: str) -> dict[str, tuple[int, str]]:
    """Each phrase of ``text`` that the prompt lacks, case aside: its first word's number, and how it is written."""
    known = f" {' '.join(_BETWEEN.sub(' ', prompt.casefold()).split())} "
    places: dict[str, tuple[int, str]] = {}
    start = 0
    for clause in _BETWEEN.split(text):
        words = clause.split()
        for first in range(len(words)):
            for last in range(first + 1, min(first + LONGEST, len(words)) + 1):
                phrase = " ".join(words[first:last])
                if f" {phrase.casefold()} " not in known:
                    places.setdefault(phrase.casefold(), (start + first, phrase))
        start += len(words)
    return places


def _shortened(phrase: str) -> tuple[str, str]:
    """The phrase without its last word, and without its first."""
    words = phrase.split(" ")
    return " ".join(words[:-1]), " ".join(words[1:])
