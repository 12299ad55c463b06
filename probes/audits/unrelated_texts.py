"""The views that read texts which have nothing to do with the tuning, and weights: everything but answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from probes.audits.expert_use import expert_use
from probes.audits.intruders import intruders
from probes.audits.patchscope import patchscope
from probes.audits.readings import difference_lens, longer_among_nulls, place_among_nulls, position_lens
from probes.audits.steering import steered_texts
from probes.audits.stream_changes import NullChanges, StreamChanges, null_changes, stream_changes
from probes.audits.token_shift import token_shares, token_shift
from probes.audits.topics import token_topics
from probes.audits.weight_directions import written_tokens
from workbench.behaviour.subject import Work
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.stats.fdr import q_values
from workbench.typing import Float, Tensor

DRAWS, NULL_TEXTS = 20, 16
"""Null adapters and random directions, the fewest for a place below .05; and texts that a null adapter reads."""


def unrelated_views(
    pair: ModelPair, texts: Prompts, questions: Prompts, draws: int, seed: int, work: Work
) -> dict[str, pd.DataFrame]:
    """Field of an audit -> its table.

    Args:
        pair: Both models.
        texts: Texts that have nothing to do with the tuning.
        questions: What steered texts answer, some of them.
        draws: Null adapters and random directions; 0: no patchscope and no steered texts.
        seed: Of intervals, sign flips, random directions and null adapters.
        work: Batch size and a bar.
    """
    bar = work.progress
    changes = stream_changes(pair, texts, bar)
    nulls, beside = _beside_random(pair, changes, texts, questions, draws, seed, work) if draws else (None, {})
    shares = token_shares(pair, texts, seed, work)
    return {
        **_lens(pair, changes, texts, nulls, seed), **beside,
        "tokens": token_shift(shares, pair.tokenizer, seed), "topics": token_topics(shares, pair.tokenizer, seed),
        "written": written_tokens(pair, seed, bar), "intruders": intruders(pair, seed, bar),
        "experts": expert_use(pair, texts, seed, bar),
    }  # fmt: skip


def _lens(
    pair: ModelPair, changes: StreamChanges, texts: Prompts, nulls: NullChanges | None, seed: int
) -> dict[str, pd.DataFrame]:
    """The activation difference lens by layer, and by layer and position, each beside its null.

    q is NaN at a position that occurs in no text of the null adapters': what was not tested is not said to have moved.
    """
    some, unembedding = changes.of_first(NULL_TEXTS), pair.tuned.unembedding().detach().float().cpu()
    readings, positions = (lens(pair, changes, texts, seed) for lens in (difference_lens, position_lens))
    own = beside = None
    if nulls is not None:
        own, beside = some.mean, nulls.mean
    by_layer = _tested(readings, own, beside, unembedding)
    if positions.empty:
        return {"readings": by_layer, "positions": positions}
    if nulls is None:
        return {"readings": by_layer, "positions": _tested(positions, None, None, unembedding)}
    at = [place for place in positions["position"].unique() if place in nulls.by_position]
    beside = torch.cat([nulls.by_position[place] for place in at], 1)
    own = torch.cat([some.by_position[place].mean(1) for place in at])
    there = positions["position"].isin(at)
    tested = _tested(positions[there].copy(), own, beside, unembedding)
    untested = positions[~there].assign(q=np.nan, q_sharp=np.nan, tokens=lambda lines: _shown(lines["tokens"]))
    return {"readings": by_layer, "positions": pd.concat([tested, untested]).sort_index()}


def _tested(
    lines: pd.DataFrame,
    own: Float[Tensor, "line d_model"] | None,
    nulls: Float[Tensor, "draw line d_model"] | None,
    unembedding: Float[Tensor, "vocab d_model"],
) -> pd.DataFrame:
    """The lines with q and q_sharp, no smaller than their place among null adapters where there are any."""
    q, q_sharp = (q_values(lines[name].to_numpy()) for name in ("p", "p_sharp"))
    if nulls is not None and own is not None:
        q = np.maximum(q, longer_among_nulls(own, nulls))
        q_sharp = np.maximum(q_sharp, place_among_nulls(lines["sharp"].to_numpy(), nulls, unembedding))
    return lines.assign(q=q, q_sharp=q_sharp, tokens=_shown(lines["tokens"]))


def _shown(lines: pd.Series) -> list[str]:
    return [" ".join(map(repr, tokens)) for tokens in lines]


def _beside_random(
    pair: ModelPair, changes: StreamChanges, texts: Prompts, questions: Prompts, draws: int, seed: int, work: Work
) -> tuple[NullChanges | None, dict[str, pd.DataFrame]]:
    """The changes under null adapters, and the views of the activation difference that run a model for every draw."""
    some, bar = changes.of_first(NULL_TEXTS), work.progress
    moved = bool(some.mean.any())
    nulls = null_changes(pair, texts[:NULL_TEXTS], some.places, draws, seed, bar) if moved else None
    steered, steered_along = steered_texts(pair, changes, questions, draws, seed, work)
    read = patchscope(pair, some, None if nulls is None else nulls.mean, draws, seed, bar)
    return nulls, {"patchscope": read, "steered": steered, "steered_texts": steered_along}
