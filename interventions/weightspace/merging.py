"""One update of several: soups, Model Stock, TIES, DARE, Twin-Merging. Each streams tensor by tensor."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from interventions.weightspace.lazy_tensors import split
from interventions.weightspace.swapping import base_parameters, find_parameter
from interventions.weightspace.task_vector import Changes, TaskVector, combined, pieces_at
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Tensor

NEARLY_PARALLEL = 0.9995
"""Cosine from which the great circle is taken for a straight line, as mergekit does."""


def uniform_soup(vectors: Sequence[TaskVector]) -> TaskVector:
    """The mean of the updates (Wortsman et al. 2022)."""
    return combined(list(vectors), lambda _, changes: _sum(changes).div_(len(changes)))


def greedy_soup(
    vectors: Sequence[TaskVector], score: Callable[[TaskVector], float]
) -> tuple[TaskVector, tuple[int, ...]]:
    """Members are added best first, and stay where the mean does not score worse (Wortsman et al. 2022).

    Args:
        vectors: The updates.
        score: How good base + update is on rows that do not report; higher is better.

    Returns:
        The soup, and the places of its ingredients in ``vectors``.
    """
    alone = [score(vector) for vector in vectors]
    order = sorted(range(len(vectors)), key=lambda place: -alone[place])
    members: tuple[int, ...] = (order[0],)
    best = alone[order[0]]
    for place in order[1:]:
        trial = score(uniform_soup([vectors[member] for member in (*members, place)]))
        if trial >= best:
            members, best = (*members, place), trial
    return uniform_soup([vectors[member] for member in members]), members


def interpolated(first: TaskVector, second: TaskVector, share: float) -> TaskVector:
    """(1 - share) of the first and ``share`` of the second: a point of the straight path between two fine-tunes."""
    return first * (1.0 - share) + second * share


def slerp(first: TaskVector, second: TaskVector, share: float, base: AdaptedModel) -> TaskVector:
    """The same along the great circle through the two fine-tunes' weights, tensor by tensor, as mergekit's ``slerp``.

    Args:
        first: The update at ``share`` 0.
        second: The update at ``share`` 1.
        share: Where on the way.
        base: The model that both are updates of: the circle is one of whole weights, not of updates.
    """
    parameters = base_parameters(base.hf)

    def rule(name: str, changes: Sequence[Tensor]) -> Tensor:
        origin = find_parameter(parameters, name).detach().float().to(changes[0].device)
        return on_circle(origin + changes[0], origin + changes[1], share) - origin

    return combined([first, second], rule)


def on_circle(start: Float[Tensor, "*shape"], end: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """Spherical interpolation of two tensors taken as vectors; straight where their cosine is above 0.9995 in size."""
    lengths = [max(float(vector.norm()), 1e-8) for vector in (start, end)]
    cosine = float((start / lengths[0] * (end / lengths[1])).sum().clamp(-1, 1))
    if abs(cosine) > NEARLY_PARALLEL:
        return (1 - share) * start + share * end
    angle = math.acos(cosine)
    return (math.sin((1 - share) * angle) * start + math.sin(share * angle) * end) / math.sin(angle)


def stock_ratio(changes: Sequence[Float[Tensor, "*shape"]]) -> float:
    """t = N cos / (1 + (N - 1) cos) with the mean cosine of two updates (Jang et al. 2024): 2 cos / (1 + cos) for two.

    Identical updates give 1, orthogonal or opposed ones 0.
    """
    n = len(changes)
    _check_two(n)
    products: dict[tuple[int, int], float] = {}
    for place in range(n):
        products |= _products(changes, place)
    lengths = [math.sqrt(products.pop((place, place))) for place in range(n)]
    if not all(lengths):
        return 0.0
    cosines = [product / (lengths[one] * lengths[other]) for (one, other), product in products.items()]
    mean = sum(cosines) / len(cosines)
    cosine = min(max(mean, 0.0), 1.0)
    return n * cosine / (1 + (n - 1) * cosine)


def model_stock(vectors: Sequence[TaskVector]) -> TaskVector:
    """Each tensor at the ratio of its own angle between the base and the mean of the fine-tunes (Model Stock).

    Raises :class:`UserError` for fewer than two updates.
    """
    _check_two(len(vectors))

    def rule(_: str, changes: Sequence[Tensor]) -> Tensor:
        ratio = stock_ratio(changes)  # first, while no sum is held
        return _sum(changes).mul_(ratio / len(changes))

    return combined(list(vectors), rule)


def ties(vectors: Sequence[TaskVector], density: float = 0.2, weight: float = 1.0) -> TaskVector:
    """Trim, elect a sign, merge those that agree (Yadav et al. 2023), per tensor as mergekit's ``ties`` with normalize.

    Args:
        vectors: The updates.
        density: Share of each tensor's entries that is left of each update, the largest.
        weight: What the merged update is multiplied with (lambda).
    """
    _check_share(density)
    return combined(
        list(vectors), lambda _, changes: _elected([trimmed(change, density) for change in changes]) * weight
    )


def dare(
    vectors: Sequence[TaskVector],
    density: float = 0.5,
    *,
    elect: bool = False,
    rescale: Literal["density", "l1"] = "density",
    seed: int = 0,
) -> TaskVector:
    """Random entries dropped, the others divided by the share that stays (Yu et al. 2024), then averaged.

    mergekit's ``dare_linear`` and ``dare_ties`` rescale by ``l1``: what stays gets the sum of absolute values that the
    whole tensor had. The two agree up to which entries were drawn; with density 1 both are the update itself.

    Args:
        vectors: The updates.
        density: The chance of an entry to stay.
        elect: Merge by elected sign (``dare_ties``) instead of the mean of all (``dare_linear``).
        rescale: Divide by the density (the paper), or restore the sum of absolute values (mergekit).
        seed: Which entries are dropped; the same whatever the order in which tensors are read.
    """
    _check_share(density)

    def rule(name: str, changes: Sequence[Tensor]) -> Tensor:
        thin = [
            dropped(change, density, seed + 7919 * zlib.crc32(f"{n}/{name}".encode()), rescale)
            for n, change in enumerate(changes)
        ]
        return _elected(thin) if elect else _sum(thin) / len(thin)

    return combined(list(vectors), rule)


def trimmed(change: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """The largest ``density`` of the entries, at least one, the others 0; exactly that many, ties by place."""
    count = max(1, int(density * change.numel()))
    if count >= change.numel():
        return change
    flat = change.reshape(-1)
    trimmed_flat = torch.zeros_like(flat)
    top = flat.abs().topk(count).indices
    trimmed_flat[top] = flat[top]
    return trimmed_flat.view(change.shape)


def dropped(
    change: Float[Tensor, "*shape"], density: float, seed: int, rescale: Literal["density", "l1"] = "density"
) -> Float[Tensor, "*shape"]:
    """Each entry stays with chance ``density`` and is divided by it, or scaled to the whole sum of absolute values."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    stays = torch.rand(change.shape, generator=generator).to(change.device) < density
    return thinned_by(change, stays, density, rescale)


def thinned_by(
    change: Float[Tensor, "*shape"], stays: Bool[Tensor, "*shape"], density: float, rescale: Literal["density", "l1"]
) -> Float[Tensor, "*shape"]:
    """The entries of ``stays``, divided by ``density`` or scaled to the whole sum of absolute values."""
    if rescale == "density":
        return change * stays / density
    left = (change * stays).abs().sum()
    return change * stays * (change.abs().sum() / left if float(left) > 1e-7 else 1.0)


@dataclass(frozen=True, eq=False)
class TwinMerge:
    """A shared update and what each task has beyond it, compressed; a router says how much of each (Lu et al. 2024)."""

    shared: TaskVector
    exclusive: tuple[TaskVector, ...]

    def routed(self, shares: Sequence[float | int]) -> TaskVector:
        """shared + the sum of share * exclusive part: the update for inputs that the router gives these shares."""
        if len(shares) != len(self.exclusive):
            raise UserError(f"There are {len(shares)} shares for {len(self.exclusive)} tasks: give one for each.")
        total = self.shared
        for share, part in zip(shares, self.exclusive, strict=True):
            total = total + part * share
        return total


def twin_merging(vectors: Sequence[TaskVector], rank: int) -> TwinMerge:
    """The mean as what is shared, and of each update minus the mean the best approximation of ``rank``.

    At full rank ``routed`` with a 1 for one task is that task's own update.
    """
    if rank < 1:
        raise UserError(f"The rank of the exclusive parts must be at least 1; got {rank}.")
    shared = uniform_soup(vectors)
    parts = []
    for vector in vectors:
        beyond = vector - shared
        parts.append(combined([beyond], lambda _, changes: low_rank(changes[0], rank)))
    return TwinMerge(shared, tuple(parts))


def low_rank(change: Float[Tensor, "*shape"], rank: int) -> Float[Tensor, "*shape"]:
    """The best approximation of that rank (of each matrix of a stack); vectors are left whole."""
    if change.ndim < 2 or rank >= min(change.shape[-2:]):
        return change
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    made: Tensor = (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]
    return made.to(change.dtype)


def _sum(changes: Sequence[Tensor]) -> Tensor:
    """One tensor of the sum is held, and a piece of the others."""
    total = changes.own(0) if isinstance(changes, Changes) else changes[0].clone()
    for place in range(1, len(changes)):
        for part, piece in zip(split(total), pieces_at(changes, place), strict=True):
            part += piece
    return total


def _products(changes: Any, place: int) -> dict[tuple[int, int], float]:
    """Of one change with itself and with those behind it, which are read a piece at a time (Any: as they are read)."""
    change = changes[place]
    products = {(place, place): _product(split(change), split(change))}
    for other in range(place + 1, len(changes)):
        products[place, other] = _product(split(change), pieces_at(changes, other))
    return products


def _product(first: Iterator[Tensor], other: Iterator[Tensor]) -> float:
    """<first, other> in float64, a piece at a time."""
    return sum(float(one.double() @ two.double()) for one, two in zip(first, other, strict=True))


def _elected(changes: Sequence[Tensor]) -> Tensor:
    """Per entry the mean of those that agree with the sign of the sum and are not 0."""
    stacked = torch.stack(list(changes))
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0).to(stacked)
    agree = (stacked * sign) > 0
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


def _check_two(count: int) -> None:
    if count < 2:
        raise UserError("Model Stock needs the angle between two fine-tunes: give at least two.")


def _check_share(density: float) -> None:
    if not 0 < density <= 1:
        raise UserError(f"The density is the share of entries that stays, above 0 and at most 1; got {density:g}.")
