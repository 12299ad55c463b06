"""Which rows a short probe adaptation wants modulated: Fisher information of a gain on every row (AdAM)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from interventions.weightspace.swapping import swapped
from workbench.typing import Bool, Float, Tensor

STEPS = 20
"""Steps of the probe adaptation, each on one batch."""
RATE = 0.02
"""Size of a step of the gains: that of Adam's first step."""

Batch = Mapping[str, Tensor]
Gradients = Callable[[Batch], Sequence[Tensor | None]]
"""Of the loss of one batch with respect to the parameters, in their order."""


def modulation_fisher(
    parameters: Mapping[str, nn.Parameter], batches: Sequence[Batch], gradients: Gradients
) -> dict[str, Float[Tensor, " row"]]:
    """Fisher information of a gain on each row (all indices of a tensor but the last), after a short training of gains.

    The gains m act as W_r (1 + m_r); they are trained for :data:`STEPS` batches, then the mean squared slope of the
    loss along each is taken over all batches (Zhao et al. 2022, with gains in place of low-rank kernel modulation). The
    weights are as before when this returns.
    """
    names, held = list(parameters), list(parameters.values())
    whole = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    gains = {name: torch.zeros(value.shape[:-1], device=value.device) for name, value in whole.items()}
    fisher = {name: torch.zeros(value.shape[:-1]) for name, value in whole.items()}
    with swapped({parameter: parameter.detach().clone() for parameter in held}):
        for step in range(STEPS):
            slopes = _slopes(names, gradients(batches[step % len(batches)]), whole)
            for name, slope in slopes.items():
                gains[name] -= RATE * slope.sign()
                with torch.no_grad():
                    scaled = whole[name] * (1 + gains[name])[..., None].to(whole[name])
                    parameters[name].copy_(scaled)
        for batch in batches:
            for name, slope in _slopes(names, gradients(batch), whole).items():
                fisher[name] += slope.square().cpu() / len(batches)
    return {name: value.reshape(-1) for name, value in fisher.items()}


def _slopes(
    names: Sequence[str], gradients: Sequence[Tensor | None], whole: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, ...]]:
    """Slope of the loss along each gain: <dL/dW_r, W_r> with the weights before modulation."""
    return {
        name: (gradient.float() * whole[name].float()).sum(-1)
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None
    }


def free_rows(
    fisher: Mapping[str, Float[Tensor, " row"]], shapes: Mapping[str, torch.Size], share: float
) -> dict[str, Bool[Tensor, "*shape"]]:
    """Masks of the rows that may move freely: the ``share`` of all rows with the least information."""
    every = torch.cat(list(fisher.values()))
    count = max(1, round(share * len(every)))
    free = torch.zeros(len(every), dtype=torch.bool)
    free[every.argsort(stable=True)[:count]] = True
    masks, start = {}, 0
    for name, values in fisher.items():
        inside = free[start : start + len(values)].reshape(shapes[name][:-1])
        masks[name] = inside[..., None].expand(shapes[name]).clone()
        start += len(values)
    return masks
