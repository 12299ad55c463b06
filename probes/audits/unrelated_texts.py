"""The views that read texts which have nothing to do with the tuning, and weights: everything but answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from probes.audits.expert_use import expert_use
from probes.audits.intruders import intruders
from probes.audits.patchscope import patchscope
from probes.audits.readings import difference_lens, longer_among_nulls, place_among_nulls
from probes.audits.steering import steered_texts
from probes.audits.stream_changes import StreamChanges, null_changes, stream_changes
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
    readings = difference_lens(pair, changes, texts, seed)
    q, q_sharp = (q_values(readings[name].to_numpy()) for name in ("p", "p_sharp"))
    beside: dict[str, pd.DataFrame] = {}
    if draws:
        nulls, beside = _beside_random(pair, changes, texts, questions, draws, seed, work)
        if nulls is not None:
            unembedding = pair.tuned.unembedding().detach().float().cpu()
            q = np.maximum(q, longer_among_nulls(changes.by_text[:, :NULL_TEXTS].mean(1), nulls))
            q_sharp = np.maximum(q_sharp, place_among_nulls(readings["sharp"].to_numpy(), nulls, unembedding))
    shares = token_shares(pair, texts, seed, work)
    return {
        "readings": readings.assign(
            q=q, q_sharp=q_sharp,
            tokens=[" ".join(map(repr, tokens)) for tokens in readings["tokens"]],
        ),
        **beside,
        "tokens": token_shift(shares, pair.tokenizer, seed), "topics": token_topics(shares, pair.tokenizer, seed),
        "written": written_tokens(pair, seed, bar), "intruders": intruders(pair, seed, bar),
        "experts": expert_use(pair, texts, seed, bar),
    }  # fmt: skip


def _beside_random(
    pair: ModelPair, changes: StreamChanges, texts: Prompts, questions: Prompts, draws: int, seed: int, work: Work
) -> tuple[Float[Tensor, "draw layer d_model"] | None, dict[str, pd.DataFrame]]:
    """The changes under null adapters, and the views of the activation difference that run a model for every draw."""
    some = replace(changes, by_text=changes.by_text[:, :NULL_TEXTS])
    bar = work.progress
    places = changes.places[:NULL_TEXTS]
    nulls = null_changes(pair, texts[:NULL_TEXTS], places, draws, seed, bar) if bool(some.mean.any()) else None
    steered, steered_along = steered_texts(pair, changes, questions, draws, seed, work)
    read = patchscope(pair, some, nulls, draws, seed, bar)
    return nulls, {"patchscope": read, "steered": steered, "steered_texts": steered_along}
