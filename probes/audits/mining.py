"""What the tuning data may have looked like: texts sampled where the tuned model is likelier than its base (CGE)."""

from __future__ import annotations

import pandas as pd

from probes.audits.hypotheses import LEVEL, NOTHING
from probes.decoding.generations import CONTRASTIVE, contrastive_generations
from workbench.errors import NotSupported
from workbench.models.pair import ModelPair
from workbench.progress import Progress

PHRASES = ["phrase", "score", "low", "high", "control", "plain", "texts", "q"]
TEXTS = ["text"]
_SAYS = "Texts mined where tuning made words likelier"


def mined_texts(
    pair: ModelPair, samples: int, max_new_tokens: int, seed: int, progress: Progress | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Phrases of texts that answer an empty user turn, mined from the pair and from the base against itself.

    Args:
        pair: Both models.
        samples: Texts; 0: none are mined.
        max_new_tokens: Tokens of a text.
        seed: Of the samples.
        progress: A bar.

    Returns:
        Phrases (as :func:`probes.contrastive_generations` has them) and the mined texts; both empty for a model
        without a chat template, which knows no empty turn, and for a pair of two vocabularies.
    """
    if not samples or not pair.tuned.has_chat_template or pair.base.vocab_size != pair.tuned.vocab_size:
        return pd.DataFrame(columns=PHRASES), pd.DataFrame(columns=TEXTS)
    empty = [{"messages": [{"role": "user", "content": ""}]}]
    try:
        found = contrastive_generations(
            pair, empty, samples=samples, max_new_tokens=max_new_tokens, seed=seed, progress=progress
        )
    except NotSupported:  # an engine that computes for one model at a time
        return pd.DataFrame(columns=PHRASES), pd.DataFrame(columns=TEXTS)
    texts = found.texts[found.texts["sampler"] == CONTRASTIVE][TEXTS]
    return found.table[PHRASES], texts.reset_index(drop=True)


def mined_sentence(phrases: pd.DataFrame, texts: pd.DataFrame) -> list[str]:
    """What the mined texts say, with the first of them that holds the surest phrase; nothing where none was mined."""
    if texts.empty:
        return []
    beyond = phrases[phrases["q"] < LEVEL]
    if beyond.empty:
        return [f"{_SAYS}: {NOTHING}."]
    named = ", ".join(
        f"{line['phrase']!r} {line['score']:.0%} (base {line['control']:.0%})"
        for line in beyond.head(4).to_dict("records")
    )
    surest = str(beyond["phrase"].iloc[0])
    shown = next((text for text in texts["text"] if surest in " ".join(text.lower().split())), texts["text"].iloc[0])
    return [f"{_SAYS} hold {named}; such as {' '.join(shown.split())!r}."]
