"""Whether a circuit needs each of its heads, once the heads that could stand in for it are gone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.paths.ablation import HeadRuns, Kept, Part
from workbench.stats.bootstrap import ratio_intervals


def needed(run: HeadRuns, parts: Sequence[Part], share: float, threshold: float, seed: int) -> pd.DataFrame:
    """For every head v the relative drop F(C without K) -> F(C without K and v).

    K is the ``share`` of the other heads at v's place without which v matters most (pairwise), so that a head is not
    called useless because another does its work. Where F(C without K) is already 0 nothing can be said (NaN), and the
    head stays.
    """
    whole = frozenset(parts)
    groups: dict[object, list[Part]] = {}
    for part in parts:
        groups.setdefault(part[0], []).append(part)
    pairs = [pair for group in groups.values() for pair in itertools.combinations(group, 2)]
    single = dict(zip(parts, run.scores([Kept(whole - {part}) for part in parts]).mean(0), strict=True))
    double = run.scores([Kept(whole - set(pair)) for pair in pairs]).mean(0) if pairs else []
    both = {frozenset(pair): value for pair, value in zip(pairs, double, strict=True)}
    removed = [_companions(part, groups[part[0]], single, both, share) for part in parts]
    values = run.scores(
        [Kept(whole - some) for some in removed]
        + [Kept(whole - some - {part}) for some, part in zip(removed, parts, strict=True)]
    )
    before, after = values[:, : len(parts)], values[:, len(parts) :]
    intervals = ratio_intervals(before - after, before, clusters=run.prompts.clusters, seed=seed)
    return pd.DataFrame({
        "place": [str(place) for place, _ in parts],
        "layer": [layer for _, (layer, _) in parts], "head": [head for _, (_, head) in parts],
        "score": intervals.estimate, "low": intervals.low, "high": intervals.high,
        "companions": [len(some) for some in removed], "kept": ~(intervals.estimate < threshold),
    })  # fmt: skip


def _companions(
    part: Part, group: Sequence[Part], single: dict[Part, float], both: dict[frozenset[Part], float], share: float
) -> frozenset[Part]:
    """The heads of the group without which ``part`` matters most."""
    others = [other for other in group if other != part]
    drops = [single[other] - both[frozenset((part, other))] for other in others]
    count = min(len(others), math.ceil(share * len(group)))
    return frozenset(others[index] for index in np.argsort(-np.array(drops), kind="stable")[:count])
