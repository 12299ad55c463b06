"""A task as grafting sees it: batches, and logits over the classes of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from probes.grafting.blend import Blender
from probes.grafting.units import Mask
from workbench.typing import Float, Int, Tensor

Classify = Callable[[nn.Module, Any], tuple[Float[Tensor, "row class"], Int[Tensor, " row"]]]
"""(model, batch) -> logits over the classes and the right class of each row; gradients flow when enabled."""


@dataclass(frozen=True)
class Task:
    """Batches of rows and how a model classifies them. ``clusters`` [row] names rows that are resampled together."""

    classify: Classify
    batches: Sequence[Any]
    clusters: np.ndarray | None = None

    def __add__(self, other: Task) -> Task:
        return replace(self, batches=[*self.batches, *other.batches], clusters=None)


@dataclass(frozen=True)
class Outcome:
    """What a model answered, row by row."""

    predicted: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence| over 15 bins of confidence (Guo et al. 2017)."""
        bins = np.clip((self.confidence * 15).astype(int), 0, 14)
        gaps = [
            abs(float(self.right[bins == b].mean() - self.confidence[bins == b].mean())) * float((bins == b).mean())
            for b in np.unique(bins)
        ]
        return float(sum(gaps))

    def agreement(self, other: Outcome) -> float:
        """Share of rows with the same answer."""
        return float((self.predicted == other.predicted).mean())


@torch.no_grad()
def outcome(task: Task, model: nn.Module) -> Outcome:
    """Run the task as the model stands."""
    predicted, confidence, right, losses = [], [], [], []
    for batch in task.batches:
        logits, label = task.classify(model, batch)
        best = logits.float().softmax(-1).max(-1)
        predicted.append(best.indices.cpu().numpy())
        confidence.append(best.values.double().cpu().numpy())
        right.append((best.indices == label).cpu().numpy())
        losses += nn.functional.cross_entropy(logits.float(), label, reduction="none").tolist()
    parts = [np.concatenate(pieces) for pieces in (predicted, confidence, right)]
    return Outcome(parts[0], parts[1], parts[2], float(np.mean(losses)))


def grafted_outcome(task: Task, blender: Blender, mask: Mask | Callable[[str], Tensor]) -> Outcome:
    """Run the task with ``mask`` grafted onto the base."""
    with blender.hard(mask) as model:
        return outcome(task, model)
