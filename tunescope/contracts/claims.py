"""Each kind of claim, measured and decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tunescope.contracts.decisions import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Finding,
    mean_at_least,
    share_at_least,
    unchanged_mean,
    unchanged_perplexity,
    unchanged_share,
)
from tunescope.contracts.merged import merged
from tunescope.contracts.panel_files import panel, solved
from tunescope.contracts.recital import recites_none
from tunescope.contracts.replies import Material
from tunescope.contracts.schema import Keeps, Merged, Perplexity, Shows, Survives, Unchanged
from workbench.behaviour.continuations import text_logprobs
from workbench.behaviour.scorers import behaviour
from workbench.behaviour.subject import Subject

_WORST = {FAILS: 0, UNDECIDED: 1, HOLDS: 2}


def shows(terms: Shows, material: Material) -> Finding:
    """How often the tuned model does it, against the threshold; the base's own share stands beside it."""
    rows = material.prompts[terms.prompts]
    scores = {role: material.scores(role, rows, terms.behaviour) for role in ("tuned", "base")}
    share, clusters, confidence = behaviour(terms.behaviour).share, rows.clusters, material.contract.confidence
    decide = share_at_least if share else mean_at_least
    if terms.at_least is not None:
        finding = decide(scores["tuned"], terms.at_least, confidence, clusters)
    else:
        limit = float(terms.at_most if terms.at_most is not None else math.nan)
        turned = decide(
            (1.0 if share else 0.0) - scores["tuned"], (1.0 if share else 0.0) - limit, confidence, clusters
        )
        finding = _turned(turned, 1.0 if share else 0.0)
    return replace(finding, detail=f"base: {scores['base'].mean():.3g}")


def unchanged(terms: Unchanged, material: Material) -> Finding:
    """The paired change from base to tuned, two one-sided tests."""
    rows = material.prompts[terms.prompts]
    base, tuned = (material.scores(role, rows, terms.behaviour) for role in ("base", "tuned"))
    detail = f"base: {base.mean():.3g}, tuned: {tuned.mean():.3g}"
    if behaviour(terms.behaviour).share:
        finding = unchanged_share(base, tuned, terms.within, material.contract.confidence, rows.clusters)
    else:
        finding = unchanged_mean(tuned - base, terms.within, material.contract.confidence, rows.clusters)
    return replace(finding, detail=detail)


def perplexity(terms: Perplexity, material: Material) -> Finding:
    """The relative change of the perplexity of texts."""
    rows = material.prompts[terms.prompts]
    base, tuned = (
        text_logprobs(Subject(role, model), rows, material.work) for role, model in material.pair.models.items()
    )
    finding = unchanged_perplexity(
        base.sum_ - tuned.sum_, base.tokens, terms.within, material.contract.confidence, rows.clusters
    )
    before, after = (math.exp(-side.sum_.sum() / side.tokens.sum()) for side in (base, tuned))
    return replace(finding, detail=f"base: {before:.4g}, tuned: {after:.4g}")


def keeps(terms: Keeps, material: Material) -> Finding:
    """Of the items that the base solves, the share that the tuned model still solves; those lost are named."""
    rows = panel(terms.panel, material.folder)
    right = {
        role: np.array([solved(reply.text, row) for reply, row in zip(material.replies(role, rows), rows, strict=True)])
        for role in ("base", "tuned")
    }
    own = np.flatnonzero(right["base"])
    clusters = rows[own].clusters if len(own) else None
    share = share_at_least(right["tuned"][own], 1 - terms.lose_at_most, material.contract.confidence, clusters)
    lost = [rows[int(item)].shown for item in own if not right["tuned"][item]]
    detail = f"the base solves {len(own)} of {len(rows)} items; lost: {'; '.join(lost) or 'none'}"
    return replace(share, detail=detail)


def survives(terms: Survives, material: Material) -> Finding:
    """The behaviour behind a system prompt and in other words: the worse of the two."""
    variants = {}
    if terms.system is not None:
        variants["behind the system text"] = material.behind(terms.system, material.prompts[terms.prompts])
    if terms.paraphrases is not None:
        variants["paraphrased"] = material.prompts[terms.paraphrases]
    confidence = material.contract.confidence
    plain = material.scores("tuned", material.prompts[terms.prompts], terms.behaviour).mean()
    findings = {
        name: share_at_least(material.scores("tuned", rows, terms.behaviour), terms.at_least, confidence, rows.clusters)
        for name, rows in variants.items()
    }
    summary = "; ".join(f"{name} {finding.estimate:.3g} ({finding.verdict})" for name, finding in findings.items())
    worst = min(findings.values(), key=lambda finding: (_WORST[finding.verdict], finding.estimate))
    return replace(worst, detail=f"plain {plain:.3g}; {summary}")


def merged_claim(terms: Merged, material: Material) -> Finding:
    """Whether the tuned checkpoint is PEFT's merge of this adapter into the base."""
    replay = merged(
        *(material.place(name) for name in (material.contract.base, terms.adapter, material.contract.tuned))
    )
    return Finding(HOLDS if replay.same else FAILS, math.nan, math.nan, math.nan, replay.tensors, None, replay.sentence)


DECIDERS: dict[str, Callable[[Any, Material], Finding]] = {
    "shows": shows,
    "unchanged": unchanged,
    "perplexity": perplexity,
    "keeps": keeps,
    "merged": merged_claim,
    "recites_none": recites_none,
    "survives": survives,
}


def _turned(finding: Finding, top: float) -> Finding:
    """The finding on ``top - x`` as one on x."""
    return replace(finding, estimate=top - finding.estimate, low=top - finding.high, high=top - finding.low)
