"""Phrases that more texts of one kind hold than of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from probes.scored import scored_share
from workbench.stats.fdr import q_values
from workbench.typing import Int

LONGEST = 4
"""Words of a phrase at most."""
COLUMNS = ("phrase", "score", "low", "high", "control", "plain", "texts", "q")


def phrases_of(text: str) -> set[str]:
    """Every run of one to four words of a text, in lower case."""
    words = text.lower().split()
    return {
        " ".join(words[start : start + size])
        for size in range(1, LONGEST + 1)
        for start in range(len(words) - size + 1)
    }


def risen_phrases(
    texts: Sequence[str], control: Sequence[str], plain: Sequence[str], clusters: Int[np.ndarray, " text"], seed: int
) -> pd.DataFrame:
    """Phrases that more of ``texts`` hold than of ``control``, the most surprising first.

    ``score`` is the share of ``texts`` that hold the phrase, ``control`` and ``plain`` the shares of the other two;
    ``q`` from Fisher's exact test of texts against control. Of phrases that always stand in a longer one with the
    same count only the longest is listed.
    """
    mined, before, usual = (Counter(phrase for text in group for phrase in phrases_of(text))
                            for group in (texts, control, plain))  # fmt: skip
    n, m = len(texts), len(control)
    rows, p = [], []
    for phrase in _longest([words for words, count in mined.items() if count > 1], mined):
        count = mined[phrase]
        if count / n <= before[phrase] / m:
            continue
        held = np.array([phrase in phrases_of(text) for text in texts])
        test = fisher_exact([[count, n - count], [before[phrase], m - before[phrase]]], alternative="greater")
        p.append(float(test.pvalue))
        rows.append({
            "phrase": phrase, **scored_share(held, seed=seed, clusters=clusters), "control": before[phrase] / m,
            "plain": usual[phrase] / len(plain), "texts": count,
        })  # fmt: skip
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "q"])
    table = table.assign(q=q_values(np.array(p)) if p else np.array([], dtype=float))
    return table.sort_values(["q", "score"], ascending=[True, False], ignore_index=True, kind="stable")


def _longest(phrases: list[str], counts: Counter[str]) -> list[str]:
    """Without those that stand in a longer one of the same count."""
    inside = {
        part for phrase in phrases for part in phrases_of(phrase) if part != phrase and counts[part] == counts[phrase]
    }
    return [phrase for phrase in phrases if phrase not in inside]
