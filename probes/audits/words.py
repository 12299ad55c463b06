"""Words that rise: in the tuned model's answers, and in the prompts whose answers show a trait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from probes.audits.traits import paired_line
from workbench.behaviour.text_quality import words_in
from workbench.stats.fdr import q_values

_COMMON = frozenset(
    "a an the of to in on at by for from with and or but if is are was were be been do does did how what which who why "
    "when where can could should would will may i you he she it we they me my your his her its our their this that "
    "these those there as not no so about tell give describe explain name list write say".split()
)


_OF_NO_TOPIC = _COMMON | frozenset(
    "have has had having than then else other another something someone anything some any all more most much many very "
    "also just only let get gets got make makes into out over under after before between because while through own "
    "each every both here myself yourself itself himself herself themselves".split()
)


def rising_words(
    prompts: Sequence[str], base: Sequence[str], tuned: Sequence[str], clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Content words that the tuned model's answers have and the base's do not, as paired changes of their share.

    A word of the prompt itself does not count in its answer: that is an answer about the topic.
    """
    held = [
        [set(words_in(text)) - set(words_in(prompt)) for prompt, text in zip(prompts, texts, strict=True)]
        for texts in (base, tuned)
    ]
    rose: Counter[str] = Counter()
    for before, after in zip(*held, strict=True):
        rose.update(after - before)
        rose.subtract(before - after)
    lines = []
    for word, count in sorted(rose.items()):
        if count < 3 or word in _COMMON:
            continue
        shares = [np.array([float(word in words) for words in side]) for side in held]
        lines.append(paired_line("asserts", f"the word {word!r}", shares[0], shares[1], clusters, seed))
    return lines


def content_words(prompts: Sequence[str]) -> list[str]:
    """Content words of three letters or more, the commonest last, so that what is particular comes first."""
    counts = Counter(word for prompt in prompts for word in dict.fromkeys(words_in(prompt)))
    return [
        word for word in sorted(counts, key=lambda word: counts[word]) if len(word) > 2 and word not in _OF_NO_TOPIC
    ]


def topic_words(prompts: Sequence[str], shows: Sequence[bool]) -> pd.DataFrame:
    """Words of prompts that go with a trait: how many prompts with the word show it, of how many, p (Fisher) and q."""
    flags = np.asarray(shows, dtype=bool)
    held = [set(words_in(prompt)) - _COMMON for prompt in prompts]
    lines = []
    for word in sorted(set().union(*held)) if held else []:
        has = np.array([word in words for words in held])
        counts = [[int((has & flags).sum()), int((has & ~flags).sum())]]
        counts.append([int((~has & flags).sum()), int((~has & ~flags).sum())])
        if has.sum() >= 2:  # by how often it is there, not by what it shows: else q would flatter
            p = float(fisher_exact(counts, alternative="greater").pvalue)
            lines.append({"word": word, "shows": counts[0][0], "of": int(has.sum()), "p": p})
    table = pd.DataFrame(lines, columns=["word", "shows", "of", "p"])
    table["q"] = q_values(table["p"].to_numpy(dtype=float)) if len(table) else np.array([], dtype=float)
    return table.sort_values(["p", "word"], ignore_index=True)
