"""The size of a mean shift without the noise's share, its interval and its p-value, from inner products alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from workbench.typing import Float, Int, Tensor

DRAWS = 1000
FLIPS = 2000
_BLOCK = 2**25


class Shift(NamedTuple):
    """Per cell; lengths are signed square roots of squared lengths, so that noise lies around 0."""

    size: np.ndarray
    low: np.ndarray
    high: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    """2.5 % and 97.5 % of the sizes under sign flips."""
    p: np.ndarray


def mean_shift(
    differences: Float[Tensor, "prompt cell d"], seed: int = 0, clusters: Int[np.ndarray, " prompt"] | None = None
) -> Shift:
    """The length of the mean over prompts of each cell's difference.

    Units are the prompts, or what ``clusters`` numbers alike. |mean|² is estimated by the mean of the inner products
    of prompts of different units, which noise leaves at 0 (the plain |mean|² would grow with the noise). Interval:
    bootstrap over units; pairs inside one unit never count. p-value: the units' signs flipped at random, one-sided,
    the observed signs counted in.
    """
    sums, sizes = _summed(differences, clusters)
    units = len(sums)
    if units < 2:
        raise ValueError("a shift needs at least two units")
    counts = _counts(units, seed).to(differences.device)
    signs = _signs(units, seed).to(differences.device)
    parts = []
    for part in sums.split(max(1, _BLOCK // max(units * units, units * len(signs))), dim=1):
        parts.append(_of_cells(part, sizes, counts, signs))
    return Shift(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _summed(differences: Tensor, clusters: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """The sum of each unit's differences [unit, cell, d], and how many prompts it holds [unit]."""
    if clusters is None:
        return differences, torch.ones(len(differences), dtype=torch.float64, device=differences.device)
    _, numbers, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = differences.new_zeros(len(sizes), *differences.shape[1:])
    sums.index_add_(0, torch.from_numpy(numbers).to(differences.device), differences)
    return sums, torch.from_numpy(sizes).double().to(differences.device)


def _of_cells(part: Tensor, sizes: Tensor, counts: Tensor, signs: Tensor) -> tuple[np.ndarray, ...]:
    rows = part.transpose(0, 1).double()
    gram = torch.bmm(rows, rows.mT)  # [cell, unit, unit]
    own = gram.diagonal(dim1=-2, dim2=-1).clone()
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    pairs = sizes.sum() ** 2 - sizes.square().sum()
    size = gram.sum((1, 2)) / pairs
    weights = counts.double()
    drawn = weights * sizes
    products = torch.matmul(weights, gram)  # [cell, draw, unit]
    resampled = (products * weights).sum(-1) / (drawn.sum(-1) ** 2 - drawn.square().sum(-1))
    flipped = (torch.matmul(signs.double(), gram) * signs).sum(-1) / pairs
    slack = 1e-9 * own.mean(1, keepdim=True) / sizes.mean() ** 2
    p = (1 + (flipped >= size[:, None] - slack).sum(1)) / (1 + flipped.shape[1])
    edges = torch.tensor([0.025, 0.975], dtype=torch.float64, device=part.device)
    low, high = resampled.quantile(edges, dim=1)
    control_low, control_high = flipped.quantile(edges, dim=1)
    lengths = [_signed_root(square) for square in (size, low, high, control_low, control_high)]
    return tuple(tensor.cpu().numpy() for tensor in (*lengths, p))


def _signed_root(squared: Tensor) -> Tensor:
    return squared.sign() * squared.abs().sqrt()


def _counts(units: int, seed: int) -> Tensor:
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return torch.from_numpy(drawn[(drawn > 0).sum(1) > 1])  # one unit alone has no pairs


def _signs(units: int, seed: int) -> Tensor:
    if 2**units <= FLIPS:  # every pattern but the observed one
        codes = np.arange(1, 2**units)[:, None] >> np.arange(units)
        return torch.from_numpy(1.0 - 2.0 * (codes & 1))
    return torch.from_numpy(np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=(FLIPS, units)))
