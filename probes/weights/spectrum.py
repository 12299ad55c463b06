"""The singular spectrum of a change of weights: exact for small matrices and factors, else estimated.

Effective rank is Roy & Vetterli's (2007) exp(entropy of the normalised singular values); stable rank is
||D||_F^2 / sigma_1^2. For a large matrix the leading singular triples come from a randomised range finder
(Halko, Martinsson & Tropp 2011) and the sums over all the others from stochastic Lanczos quadrature (Ubaru,
Chen & Saad 2017) on what the range finder left over; the estimate carries an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from workbench.typing import Float, Tensor

EXACT_UP_TO = 192
_OVERSAMPLED = 8
_POWER_STEPS = 6
_PROBES = 16
_LANCZOS_STEPS = 24
_T_95 = 2.131  # Student's t, 15 degrees of freedom
_LOST_IN_ROUNDING = 1e-2
"""Below this share of the squared norm, float32 squares of the leading part would drown the rest."""


@dataclass(frozen=True)
class Spectrum:
    """Leading singular values, largest first, their directions, and figures of the whole spectrum.

    ``decay`` is alpha in sigma_i ~ i^-alpha over the leading values. ``effective_low`` and ``effective_high``
    bound the effective rank (95 %); they equal it when the spectrum is exact. A zero matrix has ranks 0.
    """

    values: Float[Tensor, " k"]
    left: Float[Tensor, "out k"]
    right: Float[Tensor, "into k"]
    stable_rank: float
    effective_rank: float
    effective_low: float
    effective_high: float
    decay: float


def spectrum(delta: Float[Tensor, "out into"], k: int = 16, *, exact: bool | None = None) -> Spectrum:
    """The spectrum of a matrix; ``exact=None`` decides by size (smaller side up to 192: exact).

    The estimate is seeded, so the same matrix gives the same numbers.
    """
    delta = delta.float()
    if exact is None:
        exact = min(delta.shape) <= EXACT_UP_TO
    if not exact and min(delta.shape) > k + _OVERSAMPLED:
        return _estimated(delta, k)
    if delta.shape[0] < delta.shape[1]:
        right, left, values = _gram_svd(delta.T)
    else:
        left, right, values = _gram_svd(delta)
    return summarize(left, values, right, k)


def factored_spectrum(up: Float[Tensor, "out rank"], down: Float[Tensor, "rank into"], k: int = 16) -> Spectrum:
    """The exact spectrum of ``up @ down`` without forming it: QR of both factors, then an r x r SVD."""
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T)
    return summarize(q_up @ left, values, q_down @ right.T, k)


def summarize(
    left: Float[Tensor, "out rank"], values: Float[Tensor, " rank"], right: Float[Tensor, "into rank"], k: int
) -> Spectrum:
    """A spectrum from a full singular value decomposition."""
    rank = effective_rank(values)
    return Spectrum(
        values=values[:k].float(),
        left=left[:, :k].float(),
        right=right[:, :k].float(),
        stable_rank=_stable_rank(float(values.double().square().sum()), values),
        effective_rank=rank,
        effective_low=rank,
        effective_high=rank,
        decay=decay(values[:k]),
    )


def effective_rank(values: Float[Tensor, " rank"]) -> float:
    """exp(entropy) of the singular values divided by their sum; 0 when all are 0."""
    values = values.double()
    share = values[values > values.max() * 1e-9] if values.numel() and values.max() > 0 else values[:0]
    if not len(share):
        return 0.0
    share = share / share.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def decay(values: Float[Tensor, " rank"]) -> float:
    """alpha of the least-squares line log sigma_i = c - alpha log i; NaN for fewer than three values."""
    positive = values.double()[values > values.max() * 1e-6] if values.numel() else values.double()
    if len(positive) < 3:
        return math.nan
    x = torch.arange(1, len(positive) + 1, dtype=torch.float64).log()
    x = x - x.mean()
    return -float((x * positive.cpu().log()).sum() / x.square().sum())


def _stable_rank(squared_norm: float, values: Float[Tensor, " rank"]) -> float:
    first = float(values[0]) if values.numel() else 0.0
    return squared_norm / first**2 if first > 0 else 0.0


def _gram_svd(
    tall: Float[Tensor, "out into"],
) -> tuple[Float[Tensor, "out into"], Float[Tensor, "into into"], Float[Tensor, " into"]]:
    """Left, right and singular values from the Gram matrix, in float64: small values keep 8 digits."""
    wide = tall.double()
    squares, right = torch.linalg.eigh(wide.T @ wide)
    values, right = squares.clamp_min(0).sqrt().flip(0), right.flip(1)
    floor = max(float(values[0]) * 1e-7, torch.finfo(torch.float64).tiny) if len(values) else 1.0
    return (wide @ right) / values.clamp_min(floor), right, values


def _estimated(wide: Float[Tensor, "out into"], k: int) -> Spectrum:
    """The estimate; works on the shorter side, so the matrix is turned when it is taller than wide."""
    if wide.shape[0] > wide.shape[1]:
        turned = _estimated(wide.T, k)
        return replace(turned, left=turned.right, right=turned.left)
    generator = torch.Generator().manual_seed(0)
    total = float(torch.linalg.vector_norm(wide)) ** 2
    if total == 0:
        zero = wide.new_zeros(wide.shape[0], k), wide.new_zeros(k), wide.new_zeros(wide.shape[1], k)
        return summarize(*zero, k)
    gram = _square(wide)
    basis = _leading_range(gram, k + _OVERSAMPLED, generator)
    seen = basis.T @ wide
    small_left, values, right = torch.linalg.svd(seen, full_matrices=False)
    squares = max(total - float(values.double().square().sum()), 0.0)
    if squares < total * _LOST_IN_ROUNDING:
        gram = _square(torch.addmm(wide, basis, seen, alpha=-1))
        squares = float(gram.diagonal().double().sum())
    sums = _sums_beyond(gram, basis, squares, generator)
    centre = _rank_from(values, sums.mean(0))
    # jackknife: the effective rank is a smooth function of the averages over the probes
    left_out = [_rank_from(values, (sums.sum(0) - sample) / (_PROBES - 1)) for sample in sums]
    spread = sum((rank - sum(left_out) / _PROBES) ** 2 for rank in left_out)
    margin = _T_95 * math.sqrt(spread * (_PROBES - 1) / _PROBES)
    return Spectrum(
        values=values[:k],
        left=(basis @ small_left)[:, :k],
        right=right[:k].T,
        stable_rank=_stable_rank(total, values),
        effective_rank=centre,
        effective_low=max(centre - margin, 1.0),
        effective_high=min(centre + margin, float(wide.shape[0])),
        decay=decay(values[:k]),
    )


def _square(wide: Float[Tensor, "out into"]) -> Float[Tensor, "out out"]:
    return wide @ wide.T


def _leading_range(gram: Float[Tensor, "n n"], size: int, generator: torch.Generator) -> Float[Tensor, "n size"]:
    """An orthonormal basis that nearly holds the leading eigenvectors: randomised subspace iteration."""
    basis = torch.randn(len(gram), size, generator=generator).to(gram)
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(gram @ basis).Q
    return basis


def _sums_beyond(
    gram: Float[Tensor, "n n"], basis: Float[Tensor, "n size"], squares: float, generator: torch.Generator
) -> Float[Tensor, "probe two"]:
    """Per probe, the sums of sigma and of sigma log sigma over the singular values outside ``basis``.

    ``squares`` is the exact sum of their squares; it corrects each probe's sums to first order.
    """
    count = len(gram) - basis.shape[1]
    if squares <= 0:
        return torch.zeros(_PROBES, 2, dtype=torch.float64)
    ritz, weights = _quadrature(gram, basis, generator)
    values = ritz.clamp_min(0).sqrt()
    logs = values.clamp_min(torch.finfo(values.dtype).tiny).log()
    typical = math.sqrt(squares / count)
    surplus = count * (weights * values.square()).sum(1) - squares
    plain = count * (weights * values).sum(1) - surplus / (2 * typical)
    with_log = count * (weights * values * logs).sum(1) - surplus * (math.log(typical) + 1) / (2 * typical)
    return torch.stack([plain, with_log], 1)


def _quadrature(
    gram: Float[Tensor, "n n"], basis: Float[Tensor, "n size"], generator: torch.Generator
) -> tuple[Float[Tensor, "probe step"], Float[Tensor, "probe step"]]:
    """Nodes and weights of Lanczos in the complement of ``basis``; every probe has its own."""
    rows, size = basis.shape
    vector = torch.randn(rows, _PROBES, generator=generator).to(gram)
    vector = vector - basis @ (basis.T @ vector)
    vector = vector / vector.norm(dim=0)
    seen, diagonal, off = [], [], []
    for _ in range(min(_LANCZOS_STEPS, rows - size)):
        seen.append(vector)
        image = gram @ vector
        image = image - basis @ (basis.T @ image)
        diagonal.append((image * vector).sum(0))
        for old in seen:
            image = image - old * (old * image).sum(0)
        off.append(image.norm(dim=0))
        vector = image / off[-1].clamp_min(torch.finfo(image.dtype).tiny)
    side = torch.diag_embed(torch.stack(off, 1)[:, :-1], offset=1)
    ladder = torch.diag_embed(torch.stack(diagonal, 1)) + side + side.mT
    ritz, vectors = torch.linalg.eigh(ladder.double().cpu())
    return ritz, vectors[:, 0].square()


def _rank_from(values: Float[Tensor, " leading"], beyond: Float[Tensor, " two"]) -> float:
    """exp(entropy) = S exp(-T / S) with S = sum of sigma and T = sum of sigma log sigma."""
    leading = values.double()
    leading = leading[leading > 0].cpu()
    plain = float(leading.sum() + beyond[0].clamp_min(0))
    with_log = float((leading * leading.log()).sum() + beyond[1])
    return plain * math.exp(-with_log / plain)
