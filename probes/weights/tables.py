"""From collected sums to the tables people read, by module, layer, head and expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.weights.measure import outlier_q
from probes.weights.stacks import LANGUAGE

_SUMS = ["n", "change2", "base2", "product"]
_RANKS = ["stable_rank", "effective_rank", "effective_low", "effective_high", "decay"]
_CONTROLS = ["stable_rank_control", "effective_rank_control"]


def module_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per module; of experts the sums are added, ranks averaged, the largest singular value taken."""
    table = _layered(pd.DataFrame(rows))
    table["name"] = table["name"].str.replace(r"\[\d+\]$", "", regex=True)
    keys = ["stack", "layer", "module"]
    whole = {name: "sum" for name in _SUMS} | {name: "mean" for name in (*_RANKS, *_CONTROLS, "changed")}
    grouped = table.groupby(keys, dropna=False, sort=False).agg(
        {"name": "first", **whole, "sigma_1": "max", "matrix": "max"}
    )
    return _by_stack(grouped.reset_index(), within="layer", peers="matrix").drop(columns="matrix")


def layer_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per layer; parts outside the layers (embeddings, the head) are left out."""
    table = _layered(pd.DataFrame(rows))
    inside = table[table["layer"].notna()]
    return _by_stack(inside.groupby(["stack", "layer"], sort=False)[_SUMS].sum().reset_index(), within=None)


def expert_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per expert with all its matrices; empty for a dense model."""
    table = _layered(pd.DataFrame(rows))
    table = table[table["expert"].notna()].astype({"expert": "Int64"})
    mixed = {name: "sum" for name in _SUMS} | {"stable_rank": "mean", "effective_rank": "mean"}
    grouped = table.groupby(["stack", "layer", "expert"], sort=False).agg(mixed).reset_index()
    return _by_stack(grouped, within="layer")


def head_tables(rows: list[dict[str, Any]], n_heads: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per query head with all its parts, and one row per part.

    A key or value head shared by a group of query heads counts for each with an equal share, so the heads of a
    layer add up to the layer's attention weights.
    """
    columns = ["stack", "layer", "head", "module", *_SUMS, "sigma_1", "stable_rank", "effective_rank"]
    parts = _layered(pd.DataFrame(rows, columns=columns))
    # a weight and its bias are one part
    kinds = {name: "sum" for name in _SUMS} | {name: "max" for name in columns[-3:]}
    parts = parts.groupby(["stack", "layer", "head", "module"], sort=False).agg(kinds).reset_index()
    spread = []
    for module, some in parts.groupby("module", sort=False):
        group = n_heads // (int(some["head"].max()) + 1)
        for member in range(group):
            shared = some.assign(head=some["head"] * group + member, part=module)
            shared[_SUMS] = shared[_SUMS] / group
            spread.append(shared)
    joined = pd.concat(spread) if spread else parts.assign(part="")
    heads = joined.groupby(["stack", "layer", "head"], sort=False)[_SUMS].sum().reset_index()
    for part, some in joined.groupby("part", sort=False):
        before = some["base2"].to_numpy(np.float64)
        share = np.sqrt(np.divide(some["change2"], before, out=np.full(len(before), np.nan), where=before > 0))
        share_of = some[["stack", "layer", "head"]].assign(**{f"{part}_relative": share})
        heads = heads.merge(share_of, on=["stack", "layer", "head"], how="left")
    return _by_stack(heads, within="layer"), _by_stack(parts, within="layer")


def _by_stack(table: pd.DataFrame, *, within: str | None, peers: str | None = None) -> pd.DataFrame:
    """:func:`finished`, each stack among its own; the language model's rows first, ``stack`` as the last column."""
    names = sorted(table["stack"].unique(), key=lambda name: (name != LANGUAGE, name))
    parts = [finished(table[table["stack"] == name], within=within, peers=peers) for name in names]
    whole = pd.concat(parts, ignore_index=True) if parts else finished(table, within=within, peers=peers)
    return whole[[*(name for name in whole if name != "stack"), "stack"]]


def finished(table: pd.DataFrame, *, within: str | None, peers: str | None = None) -> pd.DataFrame:
    """Adds frobenius, relative, score, cosine, control and q; drops the sums but n.

    The score is the relative change, and the absolute one (frobenius) of cells whose base is all zeros, as biases are
    at their start; ``from_zero`` marks them. The control is the mean under a permutation: the squared change of the
    whole ``within`` group (the model for None) falls evenly on the group's entries. The weights are known, so low =
    high = score. Cells from zero, and those that differ in the column ``peers``, are tested apart in
    :func:`outlier_q`.
    """
    change, base = table["change2"].clip(lower=0), table["base2"].where(table["base2"] > 0)
    tuned = (base + 2 * table["product"] + change).where(lambda value: value > 0)
    groups = table[within].astype("float64").fillna(-1.0) if within else pd.Series(0, index=table.index)
    density = change.groupby(groups).transform("sum") / table["n"].groupby(groups).transform("sum")
    from_zero = table["base2"] == 0  # unlike an unknown base, which is NaN
    unit = base.mask(from_zero, 1.0)
    table = table.assign(
        frobenius=change.pow(0.5),
        relative=(change / base).pow(0.5).where(change > 0, 0.0),
        cosine=((base + table["product"]) / (base * tuned).pow(0.5)).clip(-1, 1),
        control=(density * table["n"] / unit).pow(0.5).where(density > 0, 0.0),
        from_zero=from_zero,
    )
    score = (change / unit).pow(0.5).where(change > 0, 0.0)
    table = table.assign(score=score, low=score, high=score, q=np.nan)
    apart = table[peers].astype(int) * 2 if peers else pd.Series(0, index=table.index)
    for _, some in table.groupby(apart + from_zero.astype(int)):
        table.loc[some.index, "q"] = outlier_q(torch.tensor(some["score"].to_numpy(np.float64))).numpy()
    return table.drop(columns=["change2", "base2", "product"])


def _layered(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(layer=pd.array(table["layer"].tolist(), dtype="Int64"))
