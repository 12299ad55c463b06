"""Topics of the tokens that rise: sets that rise together on unrelated texts (NMF), and whether other texts have them.

Random numbers raise in each text what is likely there; tuning on one topic raises the same sets everywhere. So topics
are made of every second text and held against the others, beside those of a null adapter on the same texts.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from probes.audits.hypotheses import LEVEL
from probes.audits.token_shift import TokenShares
from probes.audits.words import content_words
from probes.experts.counting import special_ids
from workbench.stats.tests import paired_permutation
from workbench.typing import Float

TOPICS, TOKENS, SHOWN = 3, 300, 6
"""Topics, tokens that they are made of (those that rise most), tokens that are shown of each."""
COLUMNS = ["topic", "tokens", "share", "score", "control", "p"]


def token_topics(shares: TokenShares, tokenizer: Any, seed: int) -> pd.DataFrame:
    """Topics of the risen content words; empty without a null adapter, or where nothing rises.

    Args:
        shares: What the models expect on unrelated texts.
        tokenizer: Names tokens.
        seed: Of the sign flips.

    Returns:
        topic, tokens (the heaviest first), share of the topics' weight; ``score``, the share of the other texts' rise
        (squared) that the topics explain, ``control``, the same of a null adapter by its own topics, and p of the
        difference over texts, one-sided: the same in every row, for topics are tested together.
    """
    change = shares.change()
    special = set(special_ids(tokenizer))
    words = np.array([token not in special and bool(content_words([tokenizer.decode([token])]))
                      for token in range(change.shape[1])])  # fmt: skip
    own = np.where(words, np.maximum(change, 0), 0)
    if shares.null is None or (own.max(1) > 0).sum() < 4:
        return pd.DataFrame(columns=COLUMNS)
    null = np.where(words, np.maximum(shares.change(of_null=True), 0), 0)
    explained = [_explained(rise[1::2], *_topics(rise[0::2])) for rise in (own, null)]
    p = float(paired_permutation((explained[0] - explained[1])[:, None], seed=seed, alternative="greater").p[0])
    tokens, weights = _topics(own[0::2])
    strength = weights.sum(1) / max(weights.sum(), 1e-30)
    lines = [
        {"tokens": ", ".join(tokenizer.decode([int(tokens[place])]).strip() for place in _heaviest(weights[topic])),
         "share": strength[topic], "score": explained[0].mean(), "control": explained[1].mean(), "p": p}
        for topic in np.argsort(-strength, kind="stable") if strength[topic] > 0
    ]  # fmt: skip
    return pd.DataFrame(lines).assign(topic=range(1, len(lines) + 1))[COLUMNS]


def topics_sentence(table: pd.DataFrame) -> list[str]:
    """The topics; nothing where a null adapter's explain as much."""
    if table.empty or table["p"].iloc[0] >= LEVEL:
        return []
    named = "; ".join(str(tokens) for tokens in table["tokens"])
    line = table.iloc[0]
    return [
        f"Words that rise together on unrelated text (sets by NMF): {named}. They make {line['score']:.0%} of the rise "
        f"in other texts; the sets of an adapter of random numbers make, of its own, {line['control']:.0%}."
    ]


def _topics(rise: Float[np.ndarray, "text vocab"]) -> tuple[np.ndarray, Float[np.ndarray, "topic token"]]:
    """Token ids, and the weight of each in every topic; each text counts alike, however far it rose."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    alike = _unit(rise)
    tokens = np.argsort(-alike.sum(0), kind="stable")[:TOKENS]
    size = min(TOPICS, len(alike), len(tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a topic that is not quite at rest is tested all the same
        model = NMF(size, init="nndsvda", max_iter=400).fit(alike[:, tokens])
    return tokens, model.components_


def _explained(
    rise: Float[np.ndarray, "text vocab"], tokens: np.ndarray, topics: Float[np.ndarray, "topic token"]
) -> Float[np.ndarray, " text"]:
    """The share of each text's squared rise that a mixture of the topics makes; 0 of a text where nothing rises."""
    shares = []
    for text in _unit(rise):
        mixture, left = nnls(topics.T, text[tokens])
        outside = 1 - float((text[tokens] ** 2).sum())
        shares.append(max(0.0, 1 - left**2 - outside) if mixture.any() else 0.0)
    return np.array(shares)


def _unit(rise: Float[np.ndarray, "text vocab"]) -> Float[np.ndarray, "text vocab"]:
    return rise / np.maximum(np.linalg.norm(rise, axis=1, keepdims=True), 1e-30)


def _heaviest(weights: Float[np.ndarray, " token"]) -> list[int]:
    return [int(place) for place in np.argsort(-weights, kind="stable")[:SHOWN] if weights[place] > 0]
