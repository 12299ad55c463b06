"""A LoRA's change read from its two factors: norms, overlap with the base's weight, the asymmetry of A and B."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from probes.weights.measure import Sums
from probes.weights.spectrum import effective_rank
from probes.weights.stored_adapter import Factors
from workbench.typing import Float, Tensor

_CHUNK = 1 << 20
_DRAWS = 10


def factor_change(change: Factors, weight: Float[Tensor, "out into"] | None, *, by_column: bool) -> tuple[Sums, Tensor]:
    """Sums per output row (or input column) of B A, and a small matrix with the same singular values per block.

    The matrix is B R_A^T [out, rank] by row, R_B A [rank, into] by column: an orthonormal factor dropped on the
    other side changes neither norms nor singular values. Without ``weight`` the base's sums are NaN.
    """
    up, down = change.up, change.down.to(change.up)
    if by_column:
        reduced = torch.linalg.qr(up).R @ down
    else:
        reduced = up @ torch.linalg.qr(down.T).R.T
    squares = reduced.double().square().sum(0 if by_column else 1)
    if weight is None:
        unknown = torch.full_like(squares, math.nan)
        return Sums(squares, unknown, unknown), reduced
    base, product = torch.zeros_like(squares), torch.zeros_like(squares)
    crossed = torch.zeros_like(down)
    step = max(1, _CHUNK // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        piece = slice(start, start + step)
        rows = weight[piece].to(up)
        if by_column:
            base += torch.einsum("oi,oi->i", rows, rows)
            crossed += up[piece].T @ rows
        else:
            base[piece] = torch.linalg.vecdot(rows, rows).double()
            product[piece] = (up[piece] * (rows @ down.T)).sum(1).double()
    if by_column:
        product = (crossed * down).sum(0).double()
    return Sums(squares, base, product), reduced


def factor_figures(change: Factors) -> dict[str, Any]:
    """Norms and ranks of both factors.

    ``a_over_start`` is ||A|| over the norm LoRA's usual start gives it (uniform, bound 1/sqrt(into)): about 1
    when A hardly moved. B starts at zero, so all of it was learned (Zhu et al. 2024: A stays near its start,
    B carries the task).
    """
    down, up = change.down.double(), change.up.double() / (change.scaling or 1.0)
    rank = down.shape[0]
    return {
        "rank": rank,
        "scaling": change.scaling,
        "a_norm": float(down.norm()),
        "b_norm": float(up.norm()),
        "a_over_start": float(down.norm()) / math.sqrt(rank / 3),
        "a_effective_rank": effective_rank(torch.linalg.svdvals(torch.linalg.qr(down.T).R)),
        "b_effective_rank": effective_rank(torch.linalg.svdvals(torch.linalg.qr(up).R)),
    }


@lru_cache(maxsize=512)
def product_ranks(rows: int, rank: int, columns: int) -> tuple[float, float]:
    """Stable and effective rank of a product of two Gaussian factors, mean of 10 draws: the control for a LoRA.

    Only the triangular factors are drawn (Bartlett's decomposition), which have the same distribution.
    """
    generator = np.random.default_rng(0)
    stable, effective = [], []
    for _ in range(_DRAWS):
        first, other = (_gaussian_triangle(size, rank, generator) for size in (rows, columns))
        values = torch.linalg.svdvals(first @ other.T)
        stable.append(float(values.square().sum() / values[0] ** 2))
        effective.append(effective_rank(values))
    return float(np.mean(stable)), float(np.mean(effective))


def _gaussian_triangle(size: int, rank: int, generator: np.random.Generator) -> Float[Tensor, "few rank"]:
    """R of the QR of a [size, rank] Gaussian matrix."""
    few = min(size, rank)
    triangle = np.triu(generator.standard_normal((few, rank)), 1)
    triangle[range(few), range(few)] = np.sqrt(generator.chisquare(size - np.arange(few)))
    return torch.from_numpy(triangle)
