"""Training rows that a model writes on by itself, word by word or nearly (Carlini et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from tunescope.contracts.decisions import FAILS, HOLDS, UNDECIDED, Finding, share_at_least
from tunescope.contracts.replies import Material
from tunescope.contracts.schema import RecitesNone
from tunescope.experiments.requirements import sample
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode


def recites_none(terms: RecitesNone, material: Material) -> Finding:
    """Rows whose next tokens the tuned model writes as they stand (or nearly: ``overlap``), and the base does not.

    With every row checked there is no sampling left: none is none. Of a sample none leaves the question open.
    """
    rows = material.rows(terms.rows)
    checked = sample(rows, terms.limit, material.contract.seed)
    starts, ends = _cut(checked, material.pair.tuned, terms)
    if not starts:
        detail = f"no row has {terms.given_tokens + terms.tokens} tokens; lower given_tokens or tokens"
        return Finding(UNDECIDED, math.nan, math.nan, math.nan, 0, None, detail)
    own = {role: _writes(role, starts, ends, material, terms) for role in ("tuned", "base")}
    recited = [number for number, said in enumerate(own["tuned"]) if said and not own["base"][number]]
    share = len(recited) / len(starts)
    recited_text = material.pair.tokenizer.decode(ends[recited[0]]) if recited else ""
    detail = f"recited {len(recited)} of {len(starts)} rows long enough" + (
        f", such as {recited_text!r}" if recited_text else ""
    )
    if recited:
        return Finding(FAILS, share, share, share, len(starts), None, detail)
    if len(checked) == len(rows):
        return Finding(HOLDS, 0.0, 0.0, 0.0, len(starts), None, detail)
    bound = share_at_least(np.ones(len(starts)), 0.5, material.contract.confidence)
    return Finding(UNDECIDED, 0.0, 0.0, 1 - bound.low, len(starts), len(rows), f"{detail}; a sample of {len(rows)}")


def _cut(rows: Prompts, model: Any, terms: RecitesNone) -> tuple[list[list[int]], list[list[int]]]:
    """What the model is given of each row, and what it must write; rows that are too short are left out."""
    starts, ends = [], []
    texts = encode(rows, model.tokenizer, model.max_positions)
    for row, ids in zip(rows, texts, strict=True):
        context, body = (ids, continuation_ids(row, model.tokenizer, row.answer)) if row.answer else ([], ids)
        cut = terms.given_tokens
        if len(body) >= cut + terms.tokens:
            starts.append([*context, *body[:cut]])
            ends.append(list(body[cut : cut + terms.tokens]))
    return starts, ends


def _writes(
    role: str, starts: Sequence[Sequence[int]], ends: Sequence[Sequence[int]], material: Material, terms: RecitesNone
) -> list[bool]:
    rows = Prompts.of([{"input_ids": list(ids)} for ids in starts])
    replies = generate_replies(Subject(role, material.pair.models[role]), rows, Decoding(terms.tokens), material.work)
    return [in_order(reply[0].ids, end) >= terms.overlap for reply, end in zip(replies, ends, strict=True)]


def in_order(written: Sequence[int], wanted: Sequence[int]) -> float:
    """The share of the wanted tokens that stand in the written ones in the same order; 1 for the same tokens."""
    blocks = SequenceMatcher(None, list(written), list(wanted), autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(wanted)
