"""One pair of tensors measured in a single pass over their rows: how much changed, and where inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from workbench.typing import Float, Tensor

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Sums:
    """Per row (or column): sums of squares of the change, of the base, and of their products, in float64."""

    change: Float[Tensor, " unit"]
    base: Float[Tensor, " unit"]
    product: Float[Tensor, " unit"]


@dataclass(frozen=True)
class Change:
    """The difference of two tensors [out, into] and the sums along the axis asked for."""

    delta: Float[Tensor, "out into"]
    sums: Sums
    changed: int
    """How many entries differ at all."""


def compare(base: Float[Tensor, "out into"], tuned: Float[Tensor, "out into"], *, by_column: bool = False) -> Change:
    """tuned - base, kept in float32, a chunk of rows at a time, so nothing but the difference is held."""
    wide = torch.float64 if tuned.dtype == torch.float64 else torch.float32
    rows, columns = base.shape
    delta = torch.empty(rows, columns, dtype=torch.float32, device=base.device)
    sums = torch.zeros(3, columns if by_column else rows, dtype=torch.float64, device=base.device)
    changed = 0
    step = max(1, _CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        before = base[piece].to(wide)
        delta[piece] = tuned[piece].to(wide) - before
        change, before = delta[piece], before.float()
        changed += int(torch.count_nonzero(change))
        for i, (first, other) in enumerate(((change, change), (before, before), (change, before))):
            if by_column:
                sums[i] += torch.einsum("oi,oi->i", first, other)
            else:
                sums[i, piece] = torch.linalg.vecdot(first, other).double()
    return Change(delta, Sums(*sums), changed)


def cosine(change: float, base: float, product: float) -> float:
    """cos(W, W + D) from ||D||^2, ||W||^2 and <D, W>; NaN when one of the two is zero."""
    tuned = base + 2 * product + change
    if base <= 0 or tuned <= 0:
        return math.nan
    return max(-1.0, min(1.0, (base + product) / math.sqrt(base * tuned)))


@lru_cache(maxsize=512)
def gaussian_ranks(rows: int, columns: int) -> tuple[float, float]:
    """Stable and effective rank that a matrix of independent Gaussian entries has: the norm-matched control.

    In the limit of large sizes (Marchenko & Pastur 1967); both are free of the norm.
    """
    short, long = sorted((rows, columns))
    if short <= 1:
        return float(short), float(short)
    ratio = short / long
    edge = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # substitute x = middle - half cos(angle): the density's square root becomes a smooth sine
    angle = (torch.arange(2000, dtype=torch.float64) + 0.5) * math.pi / 2000
    half = (edge[1] - edge[0]) / 2
    x = (edge[0] + edge[1]) / 2 - half * angle.cos()
    weight = (half * angle.sin()).square() / x
    weight = weight / weight.sum()
    share = x.sqrt() / (weight * x.sqrt()).sum()
    return rows * columns / (math.sqrt(rows) + math.sqrt(columns)) ** 2, short * math.exp(
        -float((weight * share * share.log()).sum())
    )


def outlier_q(scores: Float[Tensor, " cell"]) -> Float[Tensor, " cell"]:
    """False-discovery rates for "this cell changed more than its peers", from a robust fit to the peers.

    The null is the bulk of the cells themselves: log scores around their median in units of the MAD, one-sided
    Student tail (0.37 n degrees of freedom, as the MAD uses 37 % of the information), corrected by Benjamini &
    Hochberg. It flags outliers; it does not say whether all cells changed for a reason. When half or more of
    the cells are unchanged to the bit, the bulk is exactly zero and every changed cell has q = 0. Unchanged
    cells, and cells equal to all others, have q = 1.
    """
    from scipy.stats import false_discovery_control, t

    values = scores.double()
    p = torch.ones_like(values)
    present = ~values.isnan()
    moved = present & (values > 0)
    if int(moved.sum()) * 2 <= int(present.sum()):
        p[moved] = 0.0
    else:
        logs = values[moved].log()
        distance = logs - logs.median()
        spread = 1.4826 * float(distance.abs().median())
        if spread > 0:
            freedom = max(1.0, 0.37 * (len(logs) - 1))
            p[moved] = torch.from_numpy(t.sf((distance / spread).numpy(), freedom))
    if present.any():
        p[present] = torch.from_numpy(false_discovery_control(p[present].numpy()))
    p[~present] = math.nan
    return p
