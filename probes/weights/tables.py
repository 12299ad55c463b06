"""From collected sums to the tables people read, by module, layer, head and expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.weights.measure import outlier_q

_SUMS = ["n", "change2", "base2", "product"]
_RANKS = ["stable_rank", "effective_rank", "effective_low", "effective_high", "decay"]
_CONTROLS = ["stable_rank_control", "effective_rank_control"]


def module_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per module; of experts the sums are added, ranks averaged, the largest singular value taken."""
    table = _layered(pd.DataFrame(rows))
    table["name"] = table["name"].str.replace(r"\[\d+\]$", "", regex=True)
    keys = ["layer", "module"]
    whole = {name: "sum" for name in _SUMS} | {name: "mean" for name in (*_RANKS, *_CONTROLS, "changed")}
    grouped = table.groupby(keys, dropna=False, sort=False).agg(
        {"name": "first", **whole, "sigma_1": "max", "matrix": "max"}
    )
    return finished(grouped.reset_index(), within="layer", peers="matrix").drop(columns="matrix")


def layer_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per layer; parts outside the layers (embeddings, the head) are left out."""
    table = _layered(pd.DataFrame(rows))
    inside = table[table["layer"].notna()]
    return finished(inside.groupby("layer", sort=False)[_SUMS].sum().reset_index(), within=None)


def expert_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per expert with all its matrices; empty for a dense model."""
    table = _layered(pd.DataFrame(rows))
    table = table[table["expert"].notna()].astype({"expert": "Int64"})
    mixed = {name: "sum" for name in _SUMS} | {"stable_rank": "mean", "effective_rank": "mean"}
    return finished(table.groupby(["layer", "expert"], sort=False).agg(mixed).reset_index(), within="layer")


def head_tables(rows: list[dict[str, Any]], n_heads: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per query head with all its parts, and one row per part.

    A key or value head shared by a group of query heads counts for each with an equal share, so the heads of a
    layer add up to the layer's attention weights.
    """
    columns = ["layer", "head", "module", *_SUMS, "sigma_1", "stable_rank", "effective_rank"]
    parts = _layered(pd.DataFrame(rows, columns=columns))
    # a weight and its bias are one part
    kinds = {name: "sum" for name in _SUMS} | {name: "max" for name in columns[-3:]}
    parts = parts.groupby(["layer", "head", "module"], sort=False).agg(kinds).reset_index()
    spread = []
    for module, some in parts.groupby("module", sort=False):
        group = n_heads // (int(some["head"].max()) + 1)
        for member in range(group):
            shared = some.assign(head=some["head"] * group + member, part=module)
            shared[_SUMS] = shared[_SUMS] / group
            spread.append(shared)
    joined = pd.concat(spread) if spread else parts.assign(part="")
    heads = joined.groupby(["layer", "head"], sort=False)[_SUMS].sum().reset_index()
    for part, some in joined.groupby("part", sort=False):
        share = np.sqrt(some["change2"].to_numpy() / some["base2"].to_numpy())
        one = pd.DataFrame({"layer": some["layer"].array, "head": some["head"].array, f"{part}_relative": share})
        heads = heads.merge(one, on=["layer", "head"], how="left")
    return finished(heads, within="layer"), finished(parts, within="layer")


def finished(table: pd.DataFrame, *, within: str | None, peers: str | None = None) -> pd.DataFrame:
    """Adds frobenius, relative (= score), cosine, control and q; drops the sums but n.

    The control is the mean under a permutation: the squared change of the whole ``within`` group (the model for
    None) falls evenly on the group's entries. The weights are known, so low = high = score. ``peers`` names the
    column whose values are tested apart in :func:`outlier_q`.
    """
    change, base = table["change2"].clip(lower=0), table["base2"].where(table["base2"] > 0)
    tuned = (base + 2 * table["product"] + change).where(lambda value: value > 0)
    groups = table[within].astype("float64").fillna(-1.0) if within else pd.Series(0, index=table.index)
    density = change.groupby(groups).transform("sum") / table["n"].groupby(groups).transform("sum")
    table = table.assign(
        frobenius=change.pow(0.5),
        relative=(change / base).pow(0.5).where(change > 0, 0.0),
        cosine=((base + table["product"]) / (base * tuned).pow(0.5)).clip(-1, 1),
        control=(density * table["n"] / base).pow(0.5).where(density > 0, 0.0),
    )
    table = table.assign(score=table["relative"], low=table["relative"], high=table["relative"], q=np.nan)
    apart = table[peers] if peers else pd.Series(True, index=table.index)
    for _, some in table.groupby(apart):
        table.loc[some.index, "q"] = outlier_q(torch.tensor(some["score"].to_numpy(np.float64))).numpy()
    return table.drop(columns=["change2", "base2", "product"])


def _layered(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(layer=pd.array(table["layer"].tolist(), dtype="Int64"))
