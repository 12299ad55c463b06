"""A subspace of the residual stream: swapping and setting coordinates in it, and training it by interchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from probes.knob.intents import IntentPairs, partners
from probes.replay import LastToken, frozen
from workbench.errors import UserError
from workbench.progress import Progress, Silent
from workbench.typing import Float, Tensor

Basis = Float[Tensor, "d_model rank"]
"""Orthonormal columns."""


@dataclass(frozen=True)
class Training:
    """How the subspace is trained. The learning rate matters: with rank 1, 1e-3 may not move at all."""

    rank: int = 1
    """Dimensions of the subspace."""
    lr: float = 1e-2
    steps: int = 300
    """Training steps, per candidate layer."""
    batch_size: int = 16
    """Targets of one step."""
    start: Literal["random", "means"] = "random"
    """Begin at a random direction, or at the difference of the two intents' means."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 1 or self.batch_size < 1 or self.lr <= 0:
            raise UserError(f"{self} cannot train: rank, steps and batch size are at least 1, the rate above 0.")


def swap(
    target: Float[Tensor, "row d_model"], source: Float[Tensor, "row d_model"], basis: Float[Tensor, "d_model rank"]
) -> Float[Tensor, "row d_model"]:
    """(I - P) target + P source, with P = basis basisᵀ."""
    return target + ((source - target) @ basis) @ basis.T


def set_to(
    residual: Float[Tensor, "row d_model"], basis: Float[Tensor, "d_model rank"], value: Float[Tensor, "*row rank"]
) -> Float[Tensor, "row d_model"]:
    """(I - P) residual + basis value: the coordinates become ``value``, whatever they were."""
    return residual + (value - residual @ basis) @ basis.T


def orthonormal(raw: Float[Tensor, "d_model rank"]) -> Float[Tensor, "d_model rank"]:
    """Orthonormal columns with the span of ``raw``; differentiable, and ``raw`` itself when it is orthonormal."""
    basis, triangle = torch.linalg.qr(raw)
    return basis * triangle.diagonal().sign()


def random_basis(width: int, rank: int, seed: int) -> Float[Tensor, "d_model rank"]:
    """A uniformly random subspace: the control."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(width, rank, generator=generator))


def mean_difference(ends: Float[Tensor, "row d_model"], rank: int = 1) -> Float[Tensor, "d_model rank"]:
    """The direction from the second intent's mean to the first's; for higher ranks, with the top principal
    directions of the pairs' differences beside it."""
    gaps = ends[0::2] - ends[1::2]
    mean = gaps.mean(0, keepdim=True)
    if rank == 1:
        return orthonormal(mean.T)
    rest = torch.linalg.svd(gaps - mean, full_matrices=False).Vh[: rank - 1]
    return orthonormal(torch.cat([mean, rest]).T)


def train_subspace(
    last: LastToken, pairs: IntentPairs, layer: int, training: Training, seed: int = 0, progress: Progress | None = None
) -> tuple[Float[Tensor, "d_model rank"], list[float]]:
    """The subspace after ``layer`` whose swap makes the model give the partner's answer, and the losses.

    Loss: cross-entropy of the last position's logits against the first token of the partner's answer. Adam with a
    linear schedule; gradients reach the subspace alone. ``last`` holds the rows of ``pairs`` in order.
    """
    progress = progress or Silent()
    width = last.ends.shape[-1]
    if training.rank > width:
        raise UserError(f"A subspace of rank {training.rank} does not fit a residual stream of {width}.")
    ends = last.ends[layer].float()
    random = random_basis(width, training.rank, seed)
    raw = (random if training.start == "random" else mean_difference(ends, training.rank)).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=training.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=training.steps)
    wanted, sources = pairs.wanted, ends[partners(len(ends))]
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    losses = []
    progress.start(f"knob at layer {layer}", training.steps)
    with frozen(last.model.hf):
        for _ in range(training.steps):
            queue = queue or torch.randperm(len(last.rows), generator=order).tolist()
            number = queue.pop()
            rows = last.rows[number]
            logits = last.after(number, layer, swap(ends[rows], sources[rows], orthonormal(raw)), grad=True)
            loss = torch.nn.functional.cross_entropy(logits.float(), wanted[rows].to(logits.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.advance()
    progress.finish()
    return orthonormal(raw.detach()), losses
