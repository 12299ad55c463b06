"""The known-answer network of grafting: a few read-out weights solve the task, dead neurons move most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from probes.grafting.blend import Blender
from probes.grafting.regions import Region, region_of
from probes.grafting.tasks import Task

READOUT = "2.weight"


@dataclass(frozen=True)
class Planted:
    """``features``: the neurons whose read-out weight of class 1 was tuned, one entry each."""

    model: nn.Module
    base: dict[str, torch.Tensor]
    tuned: dict[str, torch.Tensor]
    train: Task
    validation: Task
    features: tuple[int, ...]

    @property
    def region(self) -> Region:
        return region_of(self.base, self.tuned)

    @property
    def blender(self) -> Blender:
        return Blender(self.model, self.region)

    def planted_only(self, mask: dict[str, torch.Tensor]) -> bool:
        """Whether the mask is exactly the planted entries."""
        chosen = {(name, *place) for name, one in mask.items() for place in one.nonzero().tolist()}
        return chosen == {(READOUT, 1, feature) for feature in self.features}


def planted(seed: int = 0, features: tuple[int, ...] = (0, 1, 2, 3), rows: int = 800) -> Planted:
    """pre has the feature neurons; tuned = pre + 4 read-out weights + movement 20 times larger on dead neurons
    + small diffuse noise everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    width, hidden, dead = 16, 64, 8
    model = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2, bias=False)).eval()
    base = {"0.weight": noise(hidden, width), "0.bias": noise(hidden) * 0.1, READOUT: noise(2, hidden) * 0.02}
    base["0.bias"][-dead:] = -1e4
    tuned = {name: value + 0.001 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    tuned["0.weight"][-dead:] += 20 * noise(dead, width)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    tuned[READOUT][1, list(features)] += signs
    tuned[READOUT][0] = base[READOUT][0]
    model.load_state_dict(base)
    inputs = noise(rows, width)
    active = torch.relu(inputs @ base["0.weight"].T + base["0.bias"])
    label = (active[:, list(features)] @ signs > 0).long()

    def task(start: int, stop: int) -> Task:
        pieces = [slice(at, min(at + 100, stop)) for at in range(start, stop, 100)]
        return Task(lambda net, batch: (net(batch[0]), batch[1]), [(inputs[p], label[p]) for p in pieces])

    return Planted(model, base, tuned, task(0, rows // 2), task(rows // 2, rows), features)
