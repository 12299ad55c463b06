"""What is tested of answers side by side: traits that a rule reads, openings and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.answer_changes import rising_openings
from probes.audits.traits import paired_line, trait_tests
from probes.audits.words import rising_words
from workbench.prompts.collection import Prompts
from workbench.stats.fdr import q_values


def answer_tests(replies: pd.DataFrame, rows: Prompts, seed: int) -> tuple[pd.DataFrame, list[list[int]]]:
    """Every trait, opening and word as a paired change, and the prompts in which each is new.

    Args:
        replies: prompt, base, tuned: answers side by side.
        rows: The prompts, whose groups are what is tested.
        seed: Of intervals and sign flips.

    Returns:
        kind, what, score, low, high, p, control, q (over all); and for each the prompts [number] that show it anew.
    """
    prompts, base, tuned = (replies[name].tolist() for name in ("prompt", "base", "tuned"))
    lines = trait_tests(base, tuned, rows.clusters, seed)
    lines += _openings(base, tuned, rows.clusters, seed)
    lines += rising_words(prompts, base, tuned, rows.clusters, seed)
    shown = [line.pop("shown") for line in lines]
    table = pd.DataFrame(lines)
    return table.assign(control=0.0, q=q_values(table["p"].to_numpy(dtype=float))), shown


def _openings(base: Sequence[str], tuned: Sequence[str], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Openings that at least three more answers have, as paired changes."""
    lines = []
    for opening in rising_openings(base, tuned)["opening"].head(30):
        shares = [_begins(side, opening) for side in (base, tuned)]
        if shares[1].sum() - shares[0].sum() >= 3:
            lines.append(paired_line("opening", repr(opening), shares[0], shares[1], clusters, seed))
    return lines


def _begins(texts: Sequence[str], opening: str) -> np.ndarray:
    """Whether each text begins with these whole words, 0 or 1 [prompt]."""
    return np.array([float(f"{' '.join(text.split())} ".startswith(f"{opening} ")) for text in texts])
