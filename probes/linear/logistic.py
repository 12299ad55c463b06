"""Ridge logistic regressions, one per cell, solved together by Newton's method in batched matrix products.

The objective is scikit-learn's: ``½ |w|² ridge + sum of log losses``, the intercept not penalised. It is strictly
convex in w, so where a solve starts does not matter to where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from workbench.typing import Bool, Float, Tensor

ITERATIONS = 30
TOLERANCE = 3e-4
"""A solve ends when no gradient entry exceeds this, times the number of rows (scikit-learn's is 1e-4 per entry
of the mean loss's gradient over C)."""


class Probes(NamedTuple):
    """One linear probe per cell; a row's logit is ``x @ weight + bias``."""

    weight: Float[Tensor, "cell d"]
    bias: Float[Tensor, " cell"]

    def logits(self, x: Float[Tensor, "cell row d"]) -> Float[Tensor, "cell row"]:
        """What every probe says of every row."""
        return torch.baddbmm(self.bias[:, None, None], x, self.weight[:, :, None])[..., 0]


def with_ones(x: Float[Tensor, "cell row d"]) -> Float[Tensor, "cell row d_and_1"]:
    """A column of ones behind the features: its weight is the intercept."""
    return torch.nn.functional.pad(x, (0, 1), value=1.0)


def penalty(width: int, ridge: float, like: Tensor) -> Float[Tensor, " d_and_1"]:
    """The ridge on every weight; almost none on the intercept, so that the system always has one solution."""
    diagonal = torch.full((width,), ridge, dtype=like.dtype, device=like.device)
    diagonal[-1] = 1e-6
    return diagonal


def fit(x: Float[Tensor, "cell row d"], y: Bool[Tensor, " row"], ridge: float = 1.0) -> Probes:
    """One probe per cell on the same labels."""
    wide = with_ones(x)
    weights, _ = newton(wide, y, penalty(wide.shape[-1], ridge, x))
    return Probes(weights[:, :-1], weights[:, -1])


def newton(
    x: Float[Tensor, "cell row d"], y: Bool[Tensor, " row"], ridge: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell d d"]]:
    """Weights at the minimum, and the Cholesky factors of the last Hessians.

    The Hessian is renewed every second step only: it costs d times a gradient. A step that does not lower the loss
    is halved.
    """
    target = y.to(x.dtype)
    weights = x.new_zeros(len(x), x.shape[-1])
    gradient = ((0.5 - target) @ x).contiguous()  # where every weight is 0 every chance is a half
    loss = x.new_full((len(x),), x.shape[1] * math.log(2))
    factor, curve = quarter_factor(x, ridge), x.new_full(x.shape[:2], 0.25)
    for step in range(1, ITERATIONS):
        if gradient.abs().max() <= TOLERANCE * x.shape[1]:
            break
        if step % 2 == 0:
            factor = _factor(x, curve, ridge)
        move = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        weights, gradient, curve, loss = _descend(x, target, weights, move, ridge, loss)
    return weights, factor


def _descend(
    x: Tensor, target: Tensor, weights: Tensor, move: Tensor, ridge: Tensor, loss: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step, halved in the cells whose loss it would raise."""
    size = torch.ones_like(loss)
    there = weights - move
    gradient, curve, found = _slope(x, target, there, ridge)
    for _ in range(6):
        worse = found > loss + 1e-5 * loss.abs()
        if not worse.any():
            break
        size = torch.where(worse, size / 2, size)
        there = weights - size[:, None] * move
        gradient, curve, found = _slope(x, target, there, ridge)
    return there, gradient, curve, found


def _slope(
    x: Float[Tensor, "cell row d"],
    target: Float[Tensor, " row"],
    weights: Float[Tensor, "cell d"],
    ridge: Float[Tensor, " d"],
) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell row"], Float[Tensor, " cell"]]:
    """Gradient, the weight p (1 - p) of every row in the Hessian, and the loss."""
    logits = torch.bmm(x, weights[:, :, None])[..., 0]
    chance = logits.sigmoid()
    pull = torch.bmm((chance - target)[:, None], x)[:, 0] + ridge * weights
    loss = (torch.nn.functional.softplus(logits) - target * logits).sum(1) + 0.5 * (ridge * weights**2).sum(1)
    return pull, chance * (1 - chance), loss


def _factor(
    x: Float[Tensor, "cell row d"], curve: Float[Tensor, "cell row"], ridge: Float[Tensor, " d"]
) -> Float[Tensor, "cell d d"]:
    """Cholesky factor of the Hessian: ridge + Xᵀ diag(curve) X."""
    return _decomposed(torch.bmm((x * curve[..., None]).mT, x), ridge)


def _decomposed(hessian: Float[Tensor, "cell d d"], ridge: Float[Tensor, " d"]) -> Float[Tensor, "cell d d"]:
    hessian.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.linalg.cholesky(hessian)


def cell_chunks(cells: int, rows: int, width: int, budget: int) -> Sequence[slice]:
    """Slices of cells whose features take at most ``budget`` numbers at once (at least one cell)."""
    size = max(1, budget // max(1, rows * width))
    return [slice(start, min(start + size, cells)) for start in range(0, cells, size)]


def refine(
    x: Float[Tensor, "cell row d"],
    targets: Float[Tensor, "row fit"],
    rows: Float[Tensor, "row fit"],
    start: Float[Tensor, "cell d fit"],
    factor: Float[Tensor, "cell d d"],
    ridge: Float[Tensor, " d"],
    tolerance: float = TOLERANCE,
) -> tuple[Float[Tensor, "cell d fit"], Bool[Tensor, "cell fit"]]:
    """Many fits per cell that differ in labels and rows (1 where a row counts), by steps with one Hessian.

    Returns the weights and which fits reached the tolerance. Steps only shrink the error when ``factor`` belongs to a
    Hessian at least as large as theirs: the quarter bound of Böhning (1992), or that of all rows near their minimum.
    """
    weights = start
    done = torch.zeros(start.shape[0], start.shape[2], dtype=torch.bool, device=x.device)
    for _ in range(ITERATIONS):
        wrong = (torch.bmm(x, weights).sigmoid() - targets) * rows
        gradient = torch.bmm(x.mT, wrong) + ridge[:, None] * weights
        done = gradient.abs().amax(1) <= tolerance * x.shape[1]
        if done.all():
            break
        weights = weights - torch.cholesky_solve(gradient, factor)
    return weights, done


def quarter_factor(x: Float[Tensor, "cell row d"], ridge: Float[Tensor, " d"]) -> Float[Tensor, "cell d d"]:
    """Cholesky factor of ridge + XᵀX / 4, which no Hessian of these rows exceeds, whatever the labels."""
    return _decomposed(torch.bmm(x.mT, x).mul_(0.25), ridge)
