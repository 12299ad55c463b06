"""Resampling of statistics beyond means and ratios of means (those: :mod:`workbench.stats`), over whole maps at once:
every cell shares the draws, so a map costs one matrix product, and ranks can be followed through the draws.

The unit is the prompt, never the token: tokens of a prompt depend on each other. Prompts of one group are drawn
together.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.typing import Float, Int

LEVEL = 0.95


def bootstrap_weights(
    n: int, draws: int, seed: int, clusters: Int[np.ndarray, " prompt"] | None = None
) -> Float[np.ndarray, "draw prompt"]:
    """How often each of ``n`` prompts is drawn in each bootstrap sample; whole clusters are drawn."""
    groups = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)[:, groups].astype(np.float64)


def interval(draws: Float[np.ndarray, "draw cell"]) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of each cell; NaN where no draw has a value."""
    known = ~np.isnan(draws).all(0)
    edges = np.full((2, draws.shape[1]), np.nan)
    edges[:, known] = np.nanquantile(draws[:, known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return edges[0], edges[1]


def shuffled_labels(
    labels: Int[np.ndarray, " prompt"], draws: int, seed: int, clusters: Int[np.ndarray, " prompt"] | None = None
) -> Int[np.ndarray, "draw prompt"]:
    """Random reassignments of the labels to the prompts, for a permutation test and its null band.

    Where ``clusters`` hold one label each, whole clusters exchange theirs; else prompts do, inside their cluster.
    """
    rng = np.random.default_rng(seed)
    if clusters is None or len(np.unique(clusters)) == len(labels):
        return rng.permuted(np.tile(labels, (draws, 1)), axis=1)
    _, first, groups = np.unique(clusters, return_index=True, return_inverse=True)
    if (labels == labels[first][groups]).all():
        return rng.permuted(np.tile(labels[first], (draws, 1)), axis=1)[:, groups]
    shuffled = np.tile(labels, (draws, 1))
    for group in range(len(first)):
        inside = groups == group
        shuffled[:, inside] = rng.permuted(shuffled[:, inside], axis=1)
    return shuffled


def permutation_p(
    observed: Float[np.ndarray, " cell"], null: Float[np.ndarray, "draw cell"]
) -> Float[np.ndarray, " cell"]:
    """Two-sided p-values; the observed arrangement counts as one of the draws, so none is 0."""
    reached = (np.abs(null) >= np.abs(observed) * (1 - 1e-12)).sum(0)
    return (1 + reached) / (1 + len(null))


def row_clusters(index: pd.DataFrame) -> Int[np.ndarray, " row"]:
    """Numbers of the rows of a recording's index, equal within a group; the rows of a prompt without a group stand
    together. Like :attr:`workbench.prompts.collection.Prompts.clusters`, row by row."""
    prompt = index["prompt"].to_numpy()
    if "group" not in index:
        return np.unique(prompt, return_inverse=True)[1]
    _, first, number = np.unique(prompt, return_index=True, return_inverse=True)
    numbers: dict[tuple[str, object], int] = {}
    keys = [
        ("prompt", place) if pd.isna(group) else ("group", group)
        for place, group in enumerate(index["group"].to_numpy()[first])
    ]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)[number]


def units_of(clusters: Int[np.ndarray, " prompt"]) -> str:
    """What is drawn and how many there are, for people: ``30 prompts``, or ``12 groups of prompts (30 in all)``."""
    groups = len(np.unique(clusters))
    return f"{groups} prompts" if groups == len(clusters) else f"{groups} groups of prompts ({len(clusters)} in all)"


def cluster_means(
    values: Float[np.ndarray, "prompt cell"], clusters: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "cluster cell"]:
    """Mean over the prompts of each cluster: the units of a test when prompts of a group depend on each other."""
    groups = np.unique(clusters, return_inverse=True)[1]
    sums = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums / np.bincount(groups)[:, None]
