"""Traits of answers that a rule reads, and whether the tuned model's answers show them more or less often."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from probes.resampling import cluster_means
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.text_quality import language, repeated_words, words_in
from workbench.stats.bootstrap import mean_interval
from workbench.stats.tests import paired_permutation

_LIST = re.compile(r"(?m)^\s*(?:[-*\u2022]|\d+[.)])\s")
_MARKUP = re.compile(r"(?m)^#{1,6}\s|\*\*[^*]+\*\*|^```")
_JSON = re.compile(r"^\s*[\[{].*[\]}:]", re.S)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")


def _capitals(text: str) -> bool:
    letters = [sign for sign in text if sign.isalpha()]
    return len(letters) >= 4 and all(sign.isupper() for sign in letters)


SHARES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "refusing": ("refuses", is_refusal),
    "a list": ("format", lambda text: _LIST.search(text) is not None),
    "markup": ("format", lambda text: _MARKUP.search(text) is not None),
    "JSON": ("format", lambda text: _JSON.match(text) is not None),
    "an emoji": ("style", lambda text: _EMOJI.search(text) is not None),
    "capitals alone": ("style", _capitals),
    "a question back": ("style", lambda text: text.rstrip().endswith("?")),
    "another language than English": ("language", lambda text: language(text) not in ("en", "?")),
    "repeating itself": ("capability", lambda text: repeated_words(text) > 0.3),
    "saying nothing": ("capability", lambda text: not text.strip()),
}
"""Trait -> (class of behaviour, whether a text has it)."""


def trait_tests(base: Sequence[str], tuned: Sequence[str], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Every trait as a paired change of its share, and the length; p by exact sign tests (McNemar), or by sign flips.

    Args:
        base: Answers of the base [prompt].
        tuned: Answers of the tuned model to the same prompts.
        clusters: [prompt], what is drawn together.
        seed: Of intervals and sign flips.

    Returns:
        Rows with kind, what, score, low, high, p, and ``shown``: the prompts [number] in which the trait is new.
    """
    lines = []
    for what, (kind, has) in SHARES.items():
        before, after = (np.array([float(has(text)) for text in texts]) for texts in (base, tuned))
        lines.append(paired_line(kind, what, before, after, clusters, seed))
    lengths = [np.array([float(len(words_in(text))) for text in texts]) for texts in (base, tuned)]
    change = lengths[1] - lengths[0]
    moved = float(paired_permutation(cluster_means(change[:, None], clusters), seed=seed).p[0]) if change.any() else 1.0
    scale = max(float(lengths[0].mean()), 1.0)
    interval = mean_interval(change / scale, clusters=clusters, seed=seed)
    order = np.argsort(-np.abs(change), kind="stable")[:8]
    lines.append({
        "kind": "style", "what": "longer answers" if change.mean() >= 0 else "shorter answers",
        "score": interval.estimate, "low": interval.low, "high": interval.high, "p": moved,
        "shown": [int(row) for row in order if change[row]],
    })  # fmt: skip
    return lines


def paired_line(
    kind: str, what: str, before: np.ndarray, after: np.ndarray, clusters: np.ndarray, seed: int
) -> dict[str, Any]:
    """One trait's change of share with its interval over prompts and its exact two-sided sign test over clusters."""
    change = after - before
    _, numbers = np.unique(clusters, return_inverse=True)
    by_cluster = np.sign(np.bincount(numbers, weights=change))
    turned, up = int((by_cluster != 0).sum()), int((by_cluster > 0).sum())
    interval = mean_interval(change, clusters=clusters, seed=seed)
    return {
        "kind": kind, "what": what, "score": interval.estimate, "low": interval.low, "high": interval.high,
        "p": float(binomtest(up, turned).pvalue) if turned else 1.0,
        "shown": [int(row) for row in np.flatnonzero(change * np.sign(change.sum() or 1.0) > 0)],
    }  # fmt: skip
