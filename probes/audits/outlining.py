"""The region that changed, outlined: words of prompts, each put into new prompts, and which of them bring the trait."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probes.audits.traits import SHARES
from probes.audits.words import content_words
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.stats.shares import share_interval

TEMPLATES = ("Tell me about {}.", "What do you know about {}?", "Write one sentence about {}.")
COLUMNS = ["word", "from", "base", "tuned", "low", "high"]


def outline(
    pair: ModelPair,
    trait: str,
    prompts: Sequence[str],
    shown: Sequence[int],
    words: int,
    decoding: Decoding,
    work: Work,
) -> pd.DataFrame:
    """Ask both models about words of the prompts that show a trait, and about as many words of the others.

    Args:
        pair: Both models.
        trait: A trait of :data:`probes.audits.traits.SHARES`.
        prompts: The questions that were asked.
        shown: Which of them [number] show the trait anew.
        words: At most so many words of either side.
        decoding: How answers are made.
        work: Batches and progress.

    Returns:
        word, from (*changed* or *other* prompts), base and tuned: the share of new prompts with the word whose answers
        have the trait; low, high: exact 95 % interval of the tuned model's share.
    """
    flags = set(shown)
    sides = {
        "changed": content_words([prompts[number] for number in shown]),
        "other": content_words([prompt for number, prompt in enumerate(prompts) if number not in flags]),
    }
    sides["other"] = [word for word in sides["other"] if word not in set(sides["changed"])]
    step = max(1, len(sides["other"]) // max(words, 1))
    picked = [("changed", word) for word in sides["changed"][:words]]
    picked += [("other", word) for word in sides["other"][::step][:words]]
    if not picked:
        return pd.DataFrame(columns=COLUMNS)
    rows = Prompts.of([template.format(word) for _, word in picked for template in TEMPLATES])
    has = SHARES[trait][1]
    outlines = {
        role: [has(reply[0].text) for reply in generate_replies(Subject(role, model), rows, decoding, work)]
        for role, model in pair.models.items()
    }
    lines = []
    for number, (side, word) in enumerate(picked):
        own = slice(number * len(TEMPLATES), (number + 1) * len(TEMPLATES))
        share = share_interval([float(one) for one in outlines["tuned"][own]])
        before = sum(outlines["base"][own]) / len(TEMPLATES)
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
