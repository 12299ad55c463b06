"""The matrices inside the layers that tuning changed, one after another, as the model multiplies by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from probes.series.members import difference
from probes.weights.naming import Place, place_of
from probes.weights.sources import Opened
from workbench.progress import Progress, Silent, tracked
from workbench.typing import Float, Tensor


@dataclass(frozen=True)
class ChangedMatrix:
    """A matrix of the base and its change, both [out, into], in float32 on the CPU."""

    number: int
    """Which of the tensors that both models have it is: what a random draw is seeded by."""
    name: str
    place: Place
    weight: Float[Tensor, "out into"]
    change: Float[Tensor, "out into"]


@torch.no_grad()
def changed_matrices(opened: Opened, title: str, progress: Progress | None) -> Iterator[ChangedMatrix]:
    """Every matrix inside the layers whose change is not zero; ``title`` is what the progress says."""
    bar = progress or Silent()
    names = [name for name in opened.base if name in opened.factors or name in opened.tuned]
    bar.start(title, len(names))
    for number, name in tracked(enumerate(names), bar):
        place = place_of(name)
        if place.layer is None or (name not in opened.factors and opened.tuned[name] is opened.base[name]):
            continue
        weight = opened.base[name]().detach()
        if weight.ndim != 2 or not weight.is_floating_point():
            continue
        change = difference(opened, name, weight)
        if not bool((change != 0).any()):
            continue
        turned = opened.layout.turned(place.module, weight.ndim)
        weight, change = ((matrix.T if turned else matrix).float().cpu() for matrix in (weight, change))
        yield ChangedMatrix(number, name, place, weight, change)
    bar.finish()
