"""Ridge logistic regressions, many per cell, solved together by conjugate gradients in batched matrix products.

The objective is scikit-learn's: ``½ |w|² ridge + sum of log losses``, the intercept not penalised. It is strictly
convex in w, so where a solve starts does not matter to where it ends. All fits of a cell (labels, shuffled labels,
folds) share one preconditioner: the inverse of ridge + XᵀX / 4, which no Hessian of these rows exceeds, whatever the
labels (Böhning 1992). Their steps then cost two products with X, and no Hessian is ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from workbench.typing import Bool, Float, Tensor

ITERATIONS = 200
TOLERANCE = 0.01
"""Nats that a fit's loss may still have to go when its solve ends. Sampling alone moves it by half a nat for each
weight (Wilks 1938)."""
ROWS_AT_ONCE = 256
"""Rows of all cells that are put in order together, so that they stay in the processor's cache."""


class Probes(NamedTuple):
    """One linear probe per cell; a row's logit is ``x @ weight + bias``."""

    weight: Float[Tensor, "cell d"]
    bias: Float[Tensor, " cell"]

    def logits(self, x: Float[Tensor, "cell row d"]) -> Float[Tensor, "cell row"]:
        """What every probe says of every row."""
        return torch.bmm(self.weight[:, None], x.mT)[:, 0] + self.bias[:, None]


class Features(NamedTuple):
    """Features of cells, ready for any number of fits."""

    x: Float[Tensor, "cell row d_and_1"]
    """Behind the features stands a column of ones: its weight is the intercept."""
    ridge: Float[Tensor, "cell d_and_1"]
    inverse: Float[Tensor, "cell d_and_1 d_and_1"]
    """Of ridge + XᵀX / 4."""

    @classmethod
    def of(cls, z: Float[Tensor, "row cell d"], ridge: float, *, standard: bool = False) -> Features:
        """Rows of all cells brought into the order of cells.

        ``standard``: as if the features were divided by their root mean square, cell by cell; weights stay in units
        of z, and the ridge is multiplied by the mean square instead.
        """
        rows, cells, width = z.shape
        x = torch.empty(cells, rows, width + 1, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
        x[:, :, -1] = 1.0
        for start in range(0, rows, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            x[:, part, :-1] = z[part].transpose(0, 1)
        bound = torch.bmm(x.mT, x)
        squares = bound.diagonal(dim1=-2, dim2=-1)[:, :-1].mean(1).div(rows).clamp_min(1e-24)
        penalty = ridge * (squares if standard else torch.ones_like(squares))[:, None].repeat(1, width + 1)
        penalty[:, -1] = 1e-6  # almost none on the intercept, so that the system always has one solution
        bound.mul_(0.25).diagonal(dim1=-2, dim2=-1).add_(penalty)
        return cls(x, penalty, torch.cholesky_inverse(torch.linalg.cholesky(bound)))

    def part(self, cells: slice) -> Features:
        """Some of the cells."""
        return Features(*(tensor[cells] for tensor in self))


class Fits(NamedTuple):
    """Solved fits of every cell."""

    weights: Float[Tensor, "cell fit d_and_1"]
    logits: Float[Tensor, "cell fit row"]
    """Of all rows, those a fit was not trained on too."""


def fit(x: Float[Tensor, "cell row d"], y: Bool[Tensor, " row"], ridge: float = 1.0) -> Probes:
    """One probe per cell on the same labels."""
    features = Features.of(x.transpose(0, 1), ridge)
    target = y[None].to(features.x.dtype)
    weights = solve(features, target, torch.ones_like(target)).weights[:, 0]
    return Probes(weights[:, :-1], weights[:, -1])


def solve(
    features: Features, targets: Float[Tensor, "fit row"], rows: Float[Tensor, "fit row"], tolerance: float = TOLERANCE
) -> Fits:
    """Fits that differ in labels and in rows (1 where a row counts, else 0), for every cell.

    Every fit starts from 0 and sees the rows that count alone, so an answer about another row is held out wherever
    the solve ends.
    """
    x, ridge, inverse = features
    positive = targets * rows
    gradient = torch.bmm((0.5 * rows - positive).expand(len(x), -1, -1), x)  # where every weight is 0
    weights, curve = torch.zeros_like(gradient), 0.25 * rows
    logits = x.new_zeros(len(x), *targets.shape)
    moves, chance, pull = (torch.empty_like(logits) for _ in range(3))
    search, end = _Search(inverse), _End(tolerance)
    for _ in range(ITERATIONS):
        along, slope = search.turn(gradient)
        torch.bmm(along, x.mT, out=moves)
        bend = torch.mul(moves, curve, out=pull).mul_(moves).sum(-1) + (along.square() * ridge[:, None]).sum(-1)
        size = -slope / bend.clamp_min(1e-30)
        weights.addcmul_(size[..., None], along)
        logits.addcmul_(size[..., None], moves)
        if end.reached(-0.5 * size * slope):
            break
        torch.sigmoid(logits, out=chance)
        curve = torch.mul(chance, rows, out=torch.empty_like(chance) if curve.ndim == 2 else curve)
        gradient = torch.bmm(torch.sub(curve, positive, out=pull), x).addcmul_(ridge[:, None], weights)
        curve.addcmul_(curve, chance, value=-1.0)
    return Fits(weights, logits)


class _Search:
    """Directions of preconditioned conjugate gradients (Polak & Ribière), each fit of each cell by itself."""

    def __init__(self, inverse: Float[Tensor, "cell d d"]) -> None:
        self.inverse = inverse
        self.before: tuple[Tensor, Tensor, Tensor] | None = None

    def turn(self, gradient: Float[Tensor, "cell fit d"]) -> tuple[Tensor, Tensor]:
        """The next direction [cell, fit, d] and the loss's slope along it [cell, fit], which is not positive."""
        pull = torch.bmm(gradient, self.inverse)
        square = (gradient * pull).sum(-1)
        along, slope = -pull, -square
        if self.before is not None:
            old, old_square, old_along = self.before
            fraction = (square - (old * pull).sum(-1)).clamp_min(0) / old_square.clamp_min(1e-30)
            turned = fraction[..., None] * old_along - pull
            downhill = (gradient * turned).sum(-1)
            along = torch.where((downhill < 0)[..., None], turned, along)
            slope = torch.where(downhill < 0, downhill, slope)
        self.before = gradient, square, along
        return along, slope


class _End:
    """When every fit has all but reached its minimum, judged by how the gains of its steps shrink."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.before: Tensor | None = None
        self.done: Tensor | None = None

    def reached(self, gain: Float[Tensor, "cell fit"]) -> bool:
        """Whether what later steps would gain is within the tolerance: taken for a geometric series, and for a tenth of
        the last gain at least (the first gains shrink faster than later ones). ``gain`` in nats."""
        done = gain <= 0.1 * self.tolerance
        if self.before is not None and self.done is not None:
            shrinking = gain.square() <= self.tolerance * (self.before - gain)
            done |= self.done | (shrinking & (gain <= 9 * self.tolerance))
        self.before, self.done = gain, done
        return bool(done.all())


def cell_chunks(cells: int, rows: int, width: int, budget: int) -> Sequence[slice]:
    """Slices of cells whose features take at most ``budget`` numbers at once (at least one cell)."""
    size = max(1, budget // max(1, rows * width))
    return [slice(start, min(start + size, cells)) for start in range(0, cells, size)]
