"""The views that read texts which have nothing to do with the tuning, and weights: everything but answers."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from probes.audits.expert_use import expert_use
from probes.audits.intruders import intruders
from probes.audits.patchscope import patchscope
from probes.audits.readings import difference_lens
from probes.audits.steering import steered_texts
from probes.audits.stream_changes import null_changes, stream_changes
from probes.audits.token_shift import token_shares, token_shift
from probes.audits.topics import token_topics
from probes.audits.weight_directions import written_tokens
from workbench.behaviour.subject import Work
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.stats.fdr import q_values

NULLS, NULL_TEXTS = 20, 16
"""Null adapters of the patchscope, the fewest for a place below .05, and texts that each of them reads."""


def unrelated_views(
    pair: ModelPair, texts: Prompts, questions: Prompts, seed: int, work: Work
) -> dict[str, pd.DataFrame]:
    """Field of an audit -> its table.

    Args:
        pair: Both models.
        texts: Texts that have nothing to do with the tuning.
        questions: What steered texts answer, some of them.
        seed: Of intervals, sign flips, random directions and null adapters.
        work: Batch size and a bar.
    """
    bar = work.progress
    changes = stream_changes(pair, texts, bar)
    readings = difference_lens(pair, changes, texts, seed)
    some = replace(changes, by_text=changes.by_text[:, :NULL_TEXTS])
    nulls = null_changes(pair, texts[:NULL_TEXTS], NULLS, seed, bar) if bool(some.mean.any()) else None
    shares = token_shares(pair, texts, seed, work)
    steered, steered_along = steered_texts(pair, changes, questions, seed, work)
    return {
        "readings": readings.assign(
            q=q_values(readings["p"].to_numpy()), q_sharp=q_values(readings["p_sharp"].to_numpy()),
            tokens=[" ".join(map(repr, tokens)) for tokens in readings["tokens"]],
        ),
        "patchscope": patchscope(pair, some, nulls, seed, bar),
        "steered": steered, "steered_texts": steered_along,
        "tokens": token_shift(shares, pair.tokenizer, seed), "topics": token_topics(shares, pair.tokenizer, seed),
        "written": written_tokens(pair, seed, bar), "intruders": intruders(pair, seed, bar),
        "experts": expert_use(pair, texts, seed, bar),
    }  # fmt: skip
