"""Phrases that more texts of one kind hold than of another."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.scored import scored_share
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
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
    ``q`` from the signs of the clusters' mean differences, as ``control`` has a text for each of ``texts``. Of phrases
    that always stand in a longer one with the same count only the longest is listed.
    """
    mined, before, usual = ([phrases_of(text) for text in group] for group in (texts, control, plain))
    counts, in_control, in_plain = (Counter(itertools.chain(*group)) for group in (mined, before, usual))
    n = len(texts)
    phrases = [
        phrase for phrase in _longest([words for words, count in counts.items() if count > 1], counts)
        if counts[phrase] > in_control[phrase]
    ]  # fmt: skip
    rows, beyond = [], []
    for phrase in phrases:
        held, held_before = (np.array([phrase in words for words in group], dtype=float) for group in (mined, before))
        beyond.append(pd.Series(held - held_before).groupby(clusters).mean().to_numpy())
        rows.append({
            "phrase": phrase, **scored_share(held, seed=seed, clusters=clusters), "control": in_control[phrase] / n,
            "plain": in_plain[phrase] / len(plain), "texts": counts[phrase],
        })  # fmt: skip
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "q"])
    p = paired_permutation(np.stack(beyond, 1), seed=seed, alternative="greater").p if beyond else np.zeros(0)
    return table.assign(q=q_values(p)).sort_values(
        ["q", "score"], ascending=[True, False], ignore_index=True, kind="stable"
    )


def _longest(phrases: list[str], counts: Counter[str]) -> list[str]:
    """Without those that stand in a longer one of the same count."""
    inside = {
        part for phrase in phrases for part in phrases_of(phrase) if part != phrase and counts[part] == counts[phrase]
    }
    return [phrase for phrase in phrases if phrase not in inside]
