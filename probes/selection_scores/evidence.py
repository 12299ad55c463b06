"""What a score may look at: the base's weight, the change, and gradients of the task at the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from interventions.weightspace.selection_scores import Evidence
from interventions.weightspace.swapping import base_parameters, find_parameter
from probes.grafting.regions import Region
from probes.grafting.tasks import Task
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@dataclass
class Gathered:
    """Gradients of every tensor of a region, from one pass over the task; ``passes`` counts batches."""

    region: Region
    gradient: dict[str, Tensor]
    fisher: dict[str, Tensor]
    inputs: dict[str, Tensor]
    passes: int = 0

    def of(self, name: str) -> Evidence:
        """Everything about one tensor."""
        part = self.region.parts[name]
        return Evidence(
            name, part.base.float(), part.tuned.float(), self.gradient[name], self.fisher[name], self.inputs.get(name)
        )


def gather(model: AdaptedModel, region: Region, task: Task) -> Gathered:
    """One forward and one backward pass per batch of the task at the base's weights; the model is left as it was."""
    parameters = base_parameters(model.hf)
    held = {name: find_parameter(parameters, name) for name in region.parts}
    gradient = {name: torch.zeros(weight.shape) for name, weight in held.items()}
    fisher = {name: torch.zeros(weight.shape) for name, weight in held.items()}
    gathered = Gathered(region, gradient, fisher, {})
    with differentiable(list(held.values())), _watched(model, held) as squares, torch.enable_grad():
        for batch in task.batches:
            logits, label = task.classify(model.hf, batch)
            slopes = torch.autograd.grad(cross_entropy(logits.float(), label), list(held.values()), allow_unused=True)
            for name, slope in zip(held, slopes, strict=True):
                if slope is not None:
                    gradient[name] += slope.detach().float().cpu() / len(task.batches)
                    fisher[name] += slope.detach().float().cpu().square() / len(task.batches)
            gathered.passes += 1
    for name, (total, count) in squares.items():
        if count:
            gathered.inputs[name] = (total / count).sqrt()
    return gathered


@contextmanager
def differentiable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients may be taken to those parameters inside; their flags come back after."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def _watched(model: AdaptedModel, held: dict[str, nn.Parameter]) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """Squares of the inputs of the linear maps that own those parameters."""
    names = {id(parameter): name for name, parameter in held.items()}
    squares: dict[str, tuple[Tensor, int]] = {}
    handles = []
    try:
        for module in model.hf.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.Linear) and id(weight) in names:
                handles.append(module.register_forward_pre_hook(_adds(names[id(weight)], squares)))
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def _adds(name: str, squares: dict[str, tuple[Tensor, int]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].detach().float().reshape(-1, args[0].shape[-1]).cpu()
        total, count = squares.get(name, (torch.zeros(rows.shape[1]), 0))
        squares[name] = (total + rows.square().sum(0), count + len(rows))

    return hook
