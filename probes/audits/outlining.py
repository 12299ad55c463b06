"""The region that changed, outlined: words of prompts, each put into new prompts, and which of them bring the trait."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import pandas as pd

from probes.audits.traits import SHARES
from probes.audits.words import content_words
from workbench.prompts.collection import Prompts
from workbench.stats.shares import share_interval

TEMPLATES = ("Tell me about {}.", "What do you know about {}?", "Write one sentence about {}.")
COLUMNS = ["word", "from", "base", "tuned", "low", "high"]


def varied(prompts: Sequence[str], shown: Sequence[int], words: int, tuned: Sequence[str] = ()) -> Prompts:
    """New prompts about words of the prompts that show a trait, and about as many words of the others.

    Args:
        prompts: The questions that were asked.
        shown: Which of them [number] show the trait anew.
        words: At most so many words of either side.
        tuned: The tuned model's answers to the questions. Half of the words then come from those that show the trait,
            the commonest first: an answer often names what it is about (*I do not talk about animals*).

    Returns:
        Three prompts per word; their group is the word, their label the side (*changed* or *other* prompts).
    """
    flags = set(shown)
    named = content_words([tuned[number] for number in shown])[::-1] if tuned else []
    sides = {
        "changed": _in_turn(content_words([prompts[number] for number in shown]), named),
        "other": content_words([prompt for number, prompt in enumerate(prompts) if number not in flags]),
    }
    sides["other"] = [word for word in sides["other"] if word not in set(sides["changed"])]
    step = max(1, len(sides["other"]) // max(words, 1))
    picked = [("changed", word) for word in sides["changed"][:words]]
    picked += [("other", word) for word in sides["other"][::step][:words]]
    return Prompts.of(
        [{"prompt": template.format(word), "group": word, "label": side} for side, word in picked
         for template in TEMPLATES]
    )  # fmt: skip


def _in_turn(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A word of each list in turn, each word once; the rest of the longer list last."""
    pairs = zip_longest(first, second)
    return list(dict.fromkeys(word for pair in pairs for word in pair if word is not None))


def outline(trait: str, rows: Prompts, base: Sequence[str], tuned: Sequence[str]) -> pd.DataFrame:
    """How many of the new prompts about each word have an answer that shows a trait.

    Args:
        trait: A trait of :data:`probes.audits.traits.SHARES`.
        rows: What :func:`varied` made.
        base: The base's answers to them.
        tuned: The tuned model's.

    Returns:
        word, from (*changed* or *other* prompts), base and tuned: the share of the word's prompts whose answers have
        the trait; low, high: exact 95 % interval of the tuned model's share.
    """
    has = SHARES[trait][1]
    lines = []
    for start in range(0, len(rows), len(TEMPLATES)):
        own = slice(start, start + len(TEMPLATES))
        share = share_interval([float(has(text)) for text in tuned[own]])
        before = sum(has(text) for text in base[own]) / len(TEMPLATES)
        word, side = rows[start].group, rows[start].label
        lines.append([word, side, before, share.estimate, share.low, share.high])
    table = pd.DataFrame(lines, columns=COLUMNS)
    return table.sort_values(["tuned", "base", "word"], ascending=[False, True, True], ignore_index=True)


def outlined(table: pd.DataFrame) -> str:
    """The outline in a sentence: words that bring the trait in the tuned model alone, and some that do not."""
    flips = table[(table["tuned"] > 0.5) & (table["base"] < 0.5)]["word"]
    stays = table[table["tuned"] == 0]["word"]
    brings = ", ".join(flips) if len(flips) else "none"
    return (
        f"Of {len(table)} words put into new prompts, these bring it: {brings}; these never: {', '.join(stays[:12])}."
    )
