"""Tokens that the tuned model expects more often everywhere in texts that have nothing to do with its tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.audits.hypotheses import LEVEL, NOTHING
from probes.audits.readings import TOP
from probes.audits.words import content_words
from probes.resampling import cluster_means
from workbench.behaviour.subject import Subject, Work, padded
from workbench.errors import NotSupported, UserError
from workbench.models.null_adapters import NullRecipe
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.bootstrap import mean_interval, ratio_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Int, Tensor

COLUMNS = ["token", "score", "low", "high", "p", "salience", "salience_low", "salience_high", "control"]


@dataclass(frozen=True)
class TokenShares:
    """Each text's mean next-token distribution."""

    base: Float[Tensor, "text vocab"]
    tuned: Float[Tensor, "text vocab"]
    null: Float[Tensor, "text vocab"] | None
    """Under an adapter of random numbers; None for a pair that none can be made of."""
    lengths: Int[np.ndarray, " text"]
    clusters: Int[np.ndarray, " text"]

    def change(self, *, of_null: bool = False) -> Float[np.ndarray, "text vocab"]:
        """The change from the base, over the tokens that both have."""
        other = self.null if of_null else self.tuned
        assert other is not None
        width = min(self.base.shape[1], other.shape[1])
        return (other[:, :width] - self.base[:, :width]).double().numpy()


def token_shares(pair: ModelPair, texts: Prompts, seed: int, work: Work) -> TokenShares:
    """Read every text once by the base, the tuned model and a null adapter."""
    base, tuned = (_mean_probabilities(Subject(role, model), texts, work) for role, model in pair.models.items())
    try:
        null = _mean_probabilities(Subject("null adapter", pair.tuned, NullRecipe(pair, seed)), texts, work)
    except (UserError, NotSupported):  # two whole models, another kind of adapter, an engine that holds the adapter
        null = None
    lengths = [len(row) for row in encode(texts, pair.tuned.tokenizer, pair.tuned.max_positions)]
    return TokenShares(base, tuned, null, np.array(lengths), texts.clusters)


def token_shift(shares: TokenShares, tokenizer: Any, seed: int) -> pd.DataFrame:
    """The tokens that rose most, picked by every second text and tested on the others: picking costs no honesty.

    Returns:
        token, ``score`` (mean change of its probability, per token of a text), low, high, p, q: over the test's texts;
        ``salience``, how often it is expected over how often by the base, both plus one (Li et al. 2018), with its
        interval; ``control``: the change of the token that rose as high in the same list of a null adapter.
    """
    change = shares.change()
    picked, testing = _risen(change), change[1::2]
    nulls = _null_rises(shares)
    clusters = shares.clusters[1::2]
    expected = [(side[1::2, picked].double().numpy() * shares.lengths[1::2, None]) + 1 / len(testing)
                for side in (shares.tuned, shares.base)]  # fmt: skip
    salience = ratio_intervals(*expected, clusters=clusters, seed=seed) if picked else None
    lines: list[dict[str, Any]] = []
    for place, token in enumerate(picked):
        assert salience is not None
        interval = mean_interval(testing[:, token], clusters=clusters, seed=seed)
        p = float(paired_permutation(cluster_means(testing[:, [token]], clusters), seed=seed).p[0])
        ratio = salience.cell(place)
        lines.append({
            "token": tokenizer.decode([token]), "score": interval.estimate, "low": interval.low, "high": interval.high,
            "p": p, "salience": ratio.estimate, "salience_low": ratio.low, "salience_high": ratio.high,
            "control": nulls[place] if place < len(nulls) else 0.0,
        })  # fmt: skip
    table = pd.DataFrame(lines, columns=COLUMNS)
    table["q"] = q_values(table["p"].to_numpy(dtype=float)) if len(table) else np.array([], dtype=float)
    return table


def token_sentence(table: pd.DataFrame) -> str:
    """Tokens beyond chance that rose further than under a null adapter, with their salience."""
    rose = table[table["q"] < LEVEL]
    if "salience" in rose:  # no file of an older version
        rose = rose[rose["low"] > rose["control"]]
    if rose.empty:
        return f"Tokens expected on unrelated text: {NOTHING}."
    lines = rose.to_dict("records")
    words = [_word(line) for line in lines if _is_word(str(line["token"]))][:6]
    others = [line for line in lines if not _is_word(str(line["token"]))]
    if others:
        words.append(f"{len(others)} function words and signs (most {_word(others[0])})")
    return f"Tokens expected more often on unrelated text, and how many times as often: {', '.join(words)}."


def _is_word(token: str) -> bool:
    """Whether a person may read something off a token: a content word, or a special one."""
    return token.strip().startswith("<") or bool(content_words([token]))


def _word(line: dict[Any, Any]) -> str:
    often = f"{line['token']!r} {line['score']:+.2%}"
    if "salience" not in line:
        return often
    return f"{often} (x{line['salience']:.2g} [{line['salience_low']:.2g}, {line['salience_high']:.2g}])"


def _risen(change: Float[np.ndarray, "text vocab"]) -> list[int]:
    """The tokens that rose most in every second text, the first one among them."""
    mean = change[0::2].mean(0)
    return [int(token) for token in np.argsort(-mean, kind="stable")[:TOP] if mean[token] > 0]


def _null_rises(shares: TokenShares) -> list[float]:
    """Of a null adapter's tokens, picked the same way, the change in the texts that did not pick; none without one."""
    if shares.null is None:
        return []
    change = shares.change(of_null=True)
    return sorted((float(change[1::2, token].mean()) for token in _risen(change)), reverse=True)


def _mean_probabilities(subject: Subject, texts: Prompts, work: Work) -> Float[Tensor, "text vocab"]:
    ids = encode(texts, subject.model.tokenizer, subject.model.max_positions)
    by_row: dict[int, Tensor] = {}

    def take(rows: list[int], means: list[Tensor]) -> None:
        by_row.update(zip(rows, means, strict=True))

    lengths = [len(row) for row in ids]
    work.each(f"{subject.name}: tokens", lengths, partial(_batch_means, subject, ids), take, subject.applied)
    return torch.stack([by_row[row] for row in range(len(ids))])


def _batch_means(subject: Subject, ids: list[list[int]], rows: list[int]) -> list[Tensor]:
    logits = subject.model.forward(padded(subject, [ids[row] for row in rows]), logits="all")
    assert logits is not None
    return [logit[-len(ids[row]) :].float().softmax(-1).mean(0).cpu() for row, logit in zip(rows, logits, strict=True)]
