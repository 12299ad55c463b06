"""The heads of two models side by side: which layers have any, and the table of how much each changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.resampling import cluster_means
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.tests import paired_permutation
from workbench.typing import Float


def attention_layers(pair: ModelPair, layers: Any) -> list[int]:
    """Those of ``layers`` (all by default) that have heads.

    Raises:
        UserError: The two models have other numbers of layers or heads.
    """
    if (pair.base.n_layers, pair.base.n_heads) != (pair.tuned.n_layers, pair.tuned.n_heads):
        raise UserError("Heads are compared one by one: both models need as many layers and heads.")
    wanted = resolve_layers(layers, pair.tuned.n_layers)
    return [layer for layer in pair.tuned.hub.geometry.attention_layers if layer in wanted]


def head_changes(
    changes: Float[np.ndarray, "prompt layer head"], layers: Sequence[int], clusters: np.ndarray, seed: int
) -> pd.DataFrame:
    """Columns layer, head; score, low, high (the mean change), control (that of the layer's heads) and p."""
    n, _, heads = changes.shape
    intervals = mean_intervals(changes, clusters=clusters, seed=seed)
    p = paired_permutation(cluster_means(changes.reshape(n, -1), clusters), seed=seed).p
    return pd.DataFrame({
        "layer": np.repeat(list(layers), heads), "head": np.tile(np.arange(heads), len(layers)),
        "score": intervals.estimate.reshape(-1), "low": intervals.low.reshape(-1), "high": intervals.high.reshape(-1),
        "control": np.repeat(changes.mean((0, 2)), heads), "p": p,
    })  # fmt: skip
