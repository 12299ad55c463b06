"""Random stand-ins for what a method chose: matched in count, layer and norm, so that only the choice
differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from workbench.errors import UserError
from workbench.typing import Float, Tensor

MIN_DRAWS = 10
Unit = tuple[int, int]
"""(layer, head) or (layer, expert)."""


class Control(NamedTuple):
    """An observed score beside the scores of random draws."""

    observed: float
    mean: float
    low: float
    """2.5 % of the draws lie below."""
    high: float
    """2.5 % of the draws lie above."""
    draws: int
    p: float
    """Share of draws at least as large as the observed score, the score itself counted in."""


def random_units(
    units: Sequence[Unit],
    units_per_layer: Mapping[int, int] | Sequence[int],
    *,
    draws: int = MIN_DRAWS,
    seed: int = 0,
    overlap: bool = False,
) -> list[list[Unit]]:
    """``draws`` sets of (layer, unit) with as many units in every layer as ``units``, in order.

    Those units are left out unless ``overlap``; a layer with too few others is drawn from as a whole. At
    least ten draws. ``units_per_layer`` is the number of heads (experts) of each layer.
    """
    check_draws(draws)
    sizes = dict(units_per_layer) if isinstance(units_per_layer, Mapping) else dict(enumerate(units_per_layer))
    taken = set(units)
    for layer, unit in sorted(taken):
        if not 0 <= unit < sizes.get(layer, 0):
            raise UserError(f"There is no unit {unit} in layer {layer} (it has {sizes.get(layer, 0)}).")
    wanted = Counter(layer for layer, _ in taken)
    pools: dict[int, list[int]] = {}
    for layer, count in sorted(wanted.items()):
        others = [unit for unit in range(sizes[layer]) if overlap or (layer, unit) not in taken]
        pools[layer] = others if len(others) >= count else list(range(sizes[layer]))
    random = np.random.default_rng(seed)
    return [
        [
            (layer, int(unit))
            for layer, pool in pools.items()
            for unit in np.sort(random.choice(pool, wanted[layer], replace=False))
        ]
        for _ in range(draws)
    ]


def random_directions(
    like: Float[Tensor, "... d"], *, draws: int = MIN_DRAWS, seed: int = 0
) -> Float[Tensor, "draw ... d"]:
    """Isotropic random vectors with the norms of ``like``, in its dtype and on its device."""
    check_draws(draws)
    drawn = torch.randn((draws, *like.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    norms = like.detach().cpu().double().norm(dim=-1, keepdim=True)
    return (drawn / drawn.norm(dim=-1, keepdim=True) * norms).to(like.device, like.dtype)


def random_subspaces(
    basis: Float[Tensor, "k d"], *, draws: int = MIN_DRAWS, seed: int = 0
) -> Float[Tensor, "draw k d"]:
    """Orthonormal rows that span random subspaces of the same dimension as ``basis``."""
    check_draws(draws)
    k, d = basis.shape
    if k > d:
        raise UserError(f"A subspace of {k} dimensions does not fit into {d}.")
    drawn = torch.randn((draws, d, k), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.mT.to(basis.device, basis.dtype)


def against_controls(observed: float, controls: Sequence[float] | np.ndarray) -> Control:
    """``observed`` beside the scores of at least ten random draws."""
    scores = np.asarray(controls, dtype=np.float64)
    check_draws(len(scores))
    low, high = np.quantile(scores, (0.025, 0.975))
    p = (1 + int((scores >= observed).sum())) / (1 + len(scores))
    return Control(float(observed), float(scores.mean()), float(low), float(high), len(scores), p)


def check_draws(draws: int) -> None:
    """Raise :class:`UserError` for too few draws to be a control."""
    if draws < MIN_DRAWS:
        raise UserError(f"A control needs at least {MIN_DRAWS} random draws; got {draws}.")
