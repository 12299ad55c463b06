"""Experts that the tuned model uses more or less than its base on the same unrelated texts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probes.audits.hypotheses import LEVEL
from probes.experts.counting import content, count_experts, special_ids
from probes.resampling import cluster_means
from workbench.errors import NotSupported, UserError
from workbench.models.null_adapters import null_adapter
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation

COLUMNS = ["expert", "score", "low", "high", "control", "p", "q"]


def expert_use(pair: ModelPair, texts: Prompts, seed: int, progress: Progress | None) -> pd.DataFrame:
    """The change of every expert's share of a text's tokens.

    Args:
        pair: Both models.
        texts: Texts that have nothing to do with the tuning.
        seed: Of intervals, sign flips and the null adapter.
        progress: A bar.

    Returns:
        expert (``L3E12``), ``score`` (mean change of the share of tokens that select it), low, high, ``control`` (the
        largest change, of any expert, under an adapter of random numbers; 0 where none can be made), p (signs of texts
        flipped) and q. Empty for dense models, and for two whose experts differ in number.
    """
    model = pair.tuned
    if not model.moe_layers or pair.base.moe_layers != model.moe_layers or pair.base.n_experts != model.n_experts:
        return pd.DataFrame(columns=COLUMNS)
    ids = encode(texts, model.tokenizer, model.max_positions)
    masks = [content(ids, "special", special_ids(model.tokenizer))]
    base, tuned = (count_experts(side, ids, masks, progress=progress)[0] for side in (pair.base, pair.tuned))
    try:
        with null_adapter(pair, seed) as stand_in:
            null = count_experts(stand_in.tuned, ids, masks, progress=progress)[0].minus(base).shares
        control = float(np.abs(null.mean(0)).max())
    except (UserError, NotSupported):  # two whole models, another kind of adapter, an engine that holds the adapter
        control = 0.0
    change = tuned.minus(base).shares.reshape(len(ids), -1)
    interval = mean_intervals(change, clusters=texts.clusters, seed=seed)
    p = paired_permutation(cluster_means(change, texts.clusters), seed=seed).p
    names = [f"L{layer}E{expert}" for layer in model.moe_layers for expert in range(model.n_experts)]
    return pd.DataFrame({
        "expert": names, "score": interval.estimate, "low": interval.low, "high": interval.high, "control": control,
        "p": p, "q": q_values(p),
    })  # fmt: skip


def expert_sentence(table: pd.DataFrame) -> list[str]:
    """Experts whose use changed beyond chance and beyond a null adapter; nothing where none's did."""
    moved = table[(table["q"] < LEVEL) & (table["score"].abs() > table["control"])]
    if moved.empty:
        return []
    top = moved.sort_values("score", key=np.abs, ascending=False, kind="stable").head(4).to_dict("records")
    named = ", ".join(f"{at['expert']} {at['score']:+.1%} [{at['low']:+.1%}, {at['high']:+.1%}]" for at in top)
    return [f"Experts that more or fewer tokens of unrelated text go to: {named}."]
