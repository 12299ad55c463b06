"""Training of masks over heads: one number per head, one mask per penalty, all penalties side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.desiderata.swapping import Swaps
from probes.paths.places import Head
from workbench.progress import Progress, Silent
from workbench.typing import Float, Tensor


@dataclass(frozen=True)
class Trained:
    """A mask at the end of an epoch. ``weights``: 1 keeps the base's output, 0 takes the source's."""

    penalty: float
    epoch: int
    weights: Float[Tensor, " head"]
    heads: tuple[Head, ...]
    """The heads that a mask rounded at 0.5 takes from the source."""


@dataclass(frozen=True)
class Schedule:
    """Adam on the weights, clamped to [0, 1] after each step."""

    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 0.1
    seed: int = 0


def train_masks(
    swaps: Swaps,
    members: Sequence[int],
    heads: Sequence[Head],
    penalties: Sequence[float],
    schedule: Schedule,
    progress: Progress | None = None,
) -> list[Trained]:
    """Minimise -mean logit(target) + penalty * (number of heads taken) on ``members``, for each penalty.

    The masks of all penalties run as copies of one batch; Adam treats every entry by itself, so each is trained as if
    alone.
    """
    layers = torch.tensor([layer for layer, _ in heads])
    places = torch.tensor([head for _, head in heads])
    model, report = swaps.model, progress or Silent()
    weights = torch.ones(len(penalties), len(heads), dtype=torch.float64, requires_grad=True)
    prices = torch.tensor(penalties, dtype=torch.float64)
    optimizer = torch.optim.Adam([weights], lr=schedule.learning_rate)
    batches = -(-len(members) // schedule.batch_size)
    report.start("Training masks", schedule.epochs * batches)
    trained: list[Trained] = []
    for epoch, rows in _batches(members, schedule):
        keep = torch.ones(len(penalties), model.n_layers, model.n_heads, dtype=torch.float64)
        keep = keep.index_put((torch.arange(len(penalties))[:, None], layers[None], places[None]), weights)
        optimizer.zero_grad()
        logits = swaps.target_logits(rows, keep)
        loss = -logits.double().mean(0).cpu() + prices * (1 - weights).sum(1)
        torch.autograd.backward([loss.sum()], inputs=[weights])
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(0, 1)
        report.advance()
        if rows is epoch.last:
            trained += [
                _trained(price, epoch.number, weight, heads) for price, weight in zip(penalties, weights, strict=True)
            ]
    report.finish()
    return trained


@dataclass(frozen=True)
class _Epoch:
    number: int
    last: list[int]


def _batches(members: Sequence[int], schedule: Schedule) -> Iterator[tuple[_Epoch, list[int]]]:
    random = np.random.default_rng(schedule.seed)
    for number in range(schedule.epochs):
        order = [members[place] for place in random.permutation(len(members))]
        parts = [order[start : start + schedule.batch_size] for start in range(0, len(order), schedule.batch_size)]
        for part in parts:
            yield _Epoch(number, parts[-1]), part


def _trained(penalty: float, epoch: int, weights: Tensor, heads: Sequence[Head]) -> Trained:
    best_weights = weights.detach().clone()
    taken = tuple(head for head, weight in zip(heads, best_weights.tolist(), strict=True) if weight < 0.5)
    return Trained(penalty, epoch, best_weights, taken)
