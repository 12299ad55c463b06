"""LoRA-LEGO: the ranks of several LoRAs as bricks, clustered into one LoRA (Zhao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from interventions.weightspace.task_vector import TaskVector
from workbench.errors import UserError
from workbench.models.weight_changes import Factors, adapted_modules, factors
from workbench.typing import Float, Int, Tensor

_ROUNDS = 100


def lora_factors(model: object) -> dict[str, Factors]:
    """The factors of every module of a loaded plain LoRA, by module. Raises :class:`UserError` for another adapter."""
    factors_of = {}
    for module in adapted_modules(model):
        module_factors = factors(model, module)
        if module_factors is None:
            raise UserError(f"The adapter at {module} is no plain LoRA: LEGO clusters the ranks of plain LoRAs.")
        factors_of[module] = Factors(module_factors.A.detach(), module_factors.B.detach(), module_factors.scaling)
    return factors_of


def lego(adapters: Sequence[Mapping[str, Factors]], rank: int | None = None, *, seed: int = 0) -> TaskVector:
    """Cluster all ranks of all adapters into ``rank`` and give the update of their centroids.

    Each rank is a unit (a_i, b_i), normalised so that the order, the sign and the split of scale between a and b do
    not matter; so an adapter merged with its own permuted copy gives the adapter. The merged update of a module gets
    the mean norm of the adapters' updates there.

    Args:
        adapters: Module -> factors, of each adapter (:func:`lora_factors`); all on the same modules.
        rank: Ranks of the merged LoRA; the largest adapter's by default.
        seed: Where k-means starts.

    Raises:
        UserError: Adapters of different modules or shapes.
    """
    if not adapters:
        raise UserError("There is nothing to merge: give at least one adapter.")
    modules = set(adapters[0])
    for adapter in adapters[1:]:
        if odd := sorted(modules ^ set(adapter)):
            raise UserError(f"{odd[0]} is adapted by only some of the LoRAs: LEGO merges adapters of the same modules.")
    changes = {}
    for module in sorted(modules):
        here = [adapter[module] for adapter in adapters]
        if len({(factor.A.shape[1], factor.B.shape[0]) for factor in here}) > 1:
            raise UserError(f"The adapters' factors at {module} have different widths: they are of different models.")
        up, down = merged_factors(here, rank or max(factor.A.shape[0] for factor in here), seed)
        changes[f"{module}.weight"] = up @ down
    return TaskVector(changes)


def merged_factors(
    members: Sequence[Factors], rank: int, seed: int = 0
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank into"]]:
    """The factors of the merged LoRA of one module."""
    units, widths = [], members[0].A.shape[1]
    for member in members:
        units.append(_normalised(member.A.detach().float(), member.B.detach().float() * member.scaling))
    every = torch.cat(units)
    labels = _clusters(every, rank, seed)
    centres = torch.stack([every[labels == label].mean(0) for label in labels.unique()])
    down, up = centres[:, :widths], centres[:, widths:].T
    wanted = sum(float((member.B.float() @ member.A.float() * member.scaling).norm()) for member in members) / len(
        members
    )
    now = float((up @ down).norm())
    return (up * (wanted / now) if now > 0 else up), down


def _normalised(down: Float[Tensor, "rank into"], up: Float[Tensor, "out rank"]) -> Float[Tensor, "rank unit"]:
    """(a, b) with |a| = |b| and the largest entry of a positive: one form for (ca, b/c), whatever c."""
    a_norm, b_norm = down.norm(dim=1), up.norm(dim=0)
    size = (a_norm * b_norm).sqrt()
    largest = down.gather(1, down.abs().argmax(1, keepdim=True)).sign()[:, 0]
    largest = torch.where(largest == 0, torch.ones_like(largest), largest)
    a = down / a_norm.clamp_min(1e-30)[:, None] * (size * largest)[:, None]
    b = up.T / b_norm.clamp_min(1e-30)[:, None] * (size * largest)[:, None]
    return torch.cat([a, b], 1)


def _clusters(units: Float[Tensor, "unit width"], count: int, seed: int) -> Int[Tensor, " unit"]:
    """k-means from centres far apart (each next centre is the unit farthest from all so far)."""
    from sklearn.cluster import KMeans

    count = min(count, len(units))
    points = units.double()
    first = int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))
    centres = [first]
    apart = (points - points[first]).norm(dim=1)
    while len(centres) < count:
        centres.append(int(apart.argmax()))
        apart = torch.minimum(apart, (points - points[centres[-1]]).norm(dim=1))
    if float(apart.max()) <= 1e-6 * float(points.norm(dim=1).max()):  # copies of each other: nothing to iterate
        return torch.cdist(points, points[centres]).argmin(1)
    solved = KMeans(count, init=points[centres].numpy(), n_init=1, max_iter=_ROUNDS).fit(points.numpy())
    return torch.from_numpy(solved.labels_).long()
