"""Directions made orthonormal by us, so that removing or setting them does exactly what it says."""

from __future__ import annotations

import warnings

import torch

from workbench.typing import Float, Tensor


class RankWarning(UserWarning):
    """Some directions depend on the others and were left out."""


def independent(directions: Float[Tensor, "k d_model"], what: str) -> Float[Tensor, "rank d_model"]:
    """The directions without those that depend linearly on earlier ones; says so with :class:`RankWarning`.

    A direction counts as dependent when less of it is left than its dtype can tell from rounding.
    """
    tolerance = min(32 * torch.finfo(directions.dtype).eps, 1e-2)
    exact = directions.detach().double()
    basis = exact[:0]
    places = []
    for place, direction in enumerate(exact):
        size = direction.norm()
        rest = direction / size if size > 0 else direction
        for _ in range(2):  # once leaves rounding errors of the size of what is left; twice is enough
            rest = rest - basis.T @ (basis @ rest)
        if rest.norm() > tolerance:
            places.append(place)
            basis = torch.cat([basis, (rest / rest.norm())[None]])
    if len(places) < len(exact):
        left_out = sorted(set(range(len(exact))) - set(places))
        warnings.warn(
            f"{what}: of {len(exact)} directions only {len(places)} are independent; left out: {left_out}.",
            RankWarning,
            stacklevel=5,
        )
    return directions if len(places) == len(exact) else directions[places]


def orthonormal(directions: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """An orthonormal basis of independent directions in float64, row i in the span of the first i + 1.

    Orthonormal rows come back as they are, with their signs; one direction is only normalised. Differentiable.
    """
    columns = directions.double().T
    if columns.shape[1] == 1:
        return (columns / columns.norm()).T
    q, r = torch.linalg.qr(columns)
    return (q * r.diagonal().sign()).T
