"""Which entries a masked fine-tuning trains: by a score, at random, half of the tensors, or within a cost budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from interventions.training.examples import Collator, Example, answer_loss
from interventions.training.modulation import free_rows, modulation_fisher
from interventions.training.trainer import answer_logits
from interventions.weightspace.selection_scores import (
    AFTER_TUNING,
    FROM_GRADIENTS,
    SCORES,
    Evidence,
    half_of_tensors,
    top_mask,
)
from interventions.weightspace.swapping import base_parameters, layer_of
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.typing import Bool, Tensor

Masks = dict[str, Bool[Tensor, "*shape"]]
RULES: tuple[str, ...] = (
    *(name for name in SCORES if name not in AFTER_TUNING),
    "random",
    "half",
    "budget",
    "free_rows",
    "all",
)
"""Scores that predict, and: random entries, half of the tensors of each kind (HFT), whole tensors within a budget of
the backward pass's cost (GreenTrainer), the rows that a probe adaptation leaves free (AdAM), everything."""
_BINS = 400


def trainable_names(model: AdaptedModel) -> list[str]:
    """Matrices inside the layers, in the order of the forward pass."""
    parameters = base_parameters(model.hf)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.ndim >= 2 and parameter.is_floating_point() and layer_of(name, model) is not None
    ]


@dataclass
class Selector:
    """Makes the masks of one rule for a model and its training rows; asked again, it looks at the weights as they are.

    ``share``: of each tensor's entries (of the whole backward pass's cost for "budget").
    """

    model: AdaptedModel
    examples: Sequence[Example]
    rule: str
    share: float
    batch_size: int = 8
    seed: int = 0
    backward_passes: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown_name("selection", self.rule, RULES)
        if not 0 < self.share <= 1:
            raise UserError(f"The share of trained entries is above 0 and at most 1; got {self.share:g}.")

    def masks(self, number: int = 0) -> Masks:
        """Parameter -> bool mask; ``number`` counts the selections of one training."""
        names, seed = trainable_names(self.model), self.seed * 1009 + number
        shapes = {name: base_parameters(self.model.hf)[name].shape for name in names}
        if self.rule == "all":
            return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        if self.rule == "half":
            half = half_of_tensors(names, [self._category(name) for name in names], seed)
            return {name: torch.full(shape, name in half) for name, shape in shapes.items()}
        if self.rule == "random":
            generator = torch.Generator().manual_seed(seed)
            return {
                name: top_mask(torch.rand(shape, generator=generator), self.share) for name, shape in shapes.items()
            }
        if self.rule == "free_rows":
            return free_rows(self.row_information(names), shapes, self.share)
        evidence = self.evidence(names, inputs=self.rule == "salient_channels")
        if self.rule == "budget":
            importance = {name: float(evidence(name).gradient.square().sum()) for name in names}
            sizes = {name: float(shape.numel()) for name, shape in shapes.items()}
            depth = {name: layer_of(name, self.model) or 0 for name in names}
            whole = set(within_budget(importance, sizes, depth, self.share))
            return {name: torch.full(shape, name in whole) for name, shape in shapes.items()}
        return {name: top_mask(SCORES[self.rule](evidence(name)), self.share) for name in names}

    def evidence(self, names: Sequence[str], *, inputs: bool = False) -> Callable[[str], Evidence]:
        """What the scores look at: the weights, and where the rule needs them the slopes over the training rows."""
        parameters = {name: base_parameters(self.model.hf)[name] for name in names}
        slopes: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        if self.rule in (*FROM_GRADIENTS, "budget"):
            slopes = self._slopes(parameters)
        widths = self._input_sizes(parameters) if inputs else {}

        def of(name: str) -> Evidence:
            base = parameters[name].detach().float().cpu()
            nothing = torch.zeros(()).expand(base.shape)
            return Evidence(
                name, base, None, slopes[0].get(name, nothing), slopes[1].get(name, nothing), widths.get(name)
            )

        return of

    def row_information(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Fisher information of a gain on each row of each tensor, after a short probe adaptation."""
        parameters = {name: base_parameters(self.model.hf)[name] for name in names}
        with self._trainable(parameters):
            return modulation_fisher(parameters, self._batches(), partial(self._gradients, list(parameters.values())))

    @contextmanager
    def _trainable(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        with ExitStack() as stack, torch.enable_grad():
            stack.enter_context(self.model.active())
            for parameter in parameters.values():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)
            yield

    def _gradients(self, held: Sequence[nn.Parameter], batch: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
        """Of the answers' loss on one batch."""
        logits = answer_logits(self.model, batch["input_ids"], batch["attention_mask"])
        loss = answer_loss(logits, batch["labels"].to(logits.device))
        self.backward_passes += 1
        return torch.autograd.grad(loss, held, allow_unused=True)

    def _slopes(self, parameters: Mapping[str, nn.Parameter]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The mean gradient and mean squared gradient over batches of the training rows."""
        held = list(parameters.values())
        mean = {name: torch.zeros(parameter.shape) for name, parameter in parameters.items()}
        square = {name: torch.zeros(parameter.shape) for name, parameter in parameters.items()}
        batches = self._batches()
        with self._trainable(parameters):
            for batch in batches:
                for name, gradient in zip(parameters, self._gradients(held, batch), strict=True):
                    if gradient is not None:
                        value = gradient.float().cpu()
                        mean[name] += value / len(batches)
                        square[name] += value.square() / len(batches)
        return mean, square

    @torch.no_grad()
    def _input_sizes(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Root mean square of every input feature of the linear maps, over the tokens of the training rows."""
        names = {id(parameter): name for name, parameter in parameters.items()}
        sums: dict[str, list[Tensor]] = {}
        with ExitStack() as stack:
            stack.enter_context(self.model.active())
            for module in self.model.hf.modules():
                name = names.get(id(getattr(module, "weight", None)))
                if isinstance(module, nn.Linear) and name is not None:
                    stack.callback(module.register_forward_pre_hook(_gathers(sums.setdefault(name, []))).remove)
            for batch in self._batches():
                answer_logits(self.model, batch["input_ids"], batch["attention_mask"])
        return {name: torch.stack(squares).mean(0).sqrt() for name, squares in sums.items() if squares}

    def _batches(self) -> list[dict[str, Tensor]]:
        collate = Collator(pad_id(self.model.tokenizer))
        starts = range(0, len(self.examples), self.batch_size)
        return [collate(self.examples[start : start + self.batch_size]) for start in starts]

    def _category(self, name: str) -> str:
        """The layer and the part of it (attention, MLP, norms) that a tensor belongs to."""
        layer = layer_of(name, self.model)
        rest = name.split(f".{layer}.", 1)[-1]
        return f"{layer}/{'norm' if 'norm' in rest or 'ln_' in rest else rest.split('.')[0]}"


def _gathers(sums: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        sums.append(args[0].detach().float().reshape(-1, args[0].shape[-1]).square().mean(0).cpu())

    return hook


def within_budget(
    importance: Mapping[str, float], sizes: Mapping[str, float], depth: Mapping[str, int], budget: float
) -> list[str]:
    """The tensors with the most importance whose backward pass costs at most ``budget`` of the whole one
    (GreenTrainer, Huang et al. 2024).

    A trained tensor costs its own gradient; the slope of the activations must come down to the shallowest trained
    layer, which costs as much again for every tensor of the layers above it. For every shallowest layer the choice is a
    knapsack, solved on a grid of 400 steps with costs rounded up, so the budget is never passed.

    Args:
        importance: Tensor -> loss that training it would take away (its squared slopes).
        sizes: Tensor -> its entries; the cost of its gradient per token.
        depth: Tensor -> its layer.
        budget: Share of the cost of training everything.
    """
    total = 2.0 * sum(sizes.values())
    best: tuple[float, list[str]] = (0.0, [])
    for shallowest in sorted(set(depth.values())):
        passing = sum(size for name, size in sizes.items() if depth[name] > shallowest)
        left = budget * total - passing
        if left > 0:
            inside = [name for name in sizes if depth[name] >= shallowest]
            trial = _knapsack(inside, importance, sizes, left)
            best = max(best, trial, key=lambda pair: pair[0])
    if not best[1]:
        raise UserError(f"A budget of {budget:g} of the backward pass pays for no tensor: give a larger share.")
    return sorted(best[1], key=list(sizes).index)


def _knapsack(
    names: Sequence[str], importance: Mapping[str, float], sizes: Mapping[str, float], budget: float
) -> tuple[float, list[str]]:
    """The best importance within ``budget``, and its members."""
    costs = [int(np.ceil(sizes[name] / budget * _BINS)) for name in names]
    value = np.zeros(_BINS + 1)
    taken = np.zeros((len(names), _BINS + 1), dtype=bool)
    for place, (name, cost) in enumerate(zip(names, costs, strict=True)):
        if cost <= _BINS:
            trial = value[: _BINS + 1 - cost] + importance[name]
            taken[place, cost:] = trial > value[cost:]
            value[cost:] = np.maximum(value[cost:], trial)
    members, left = [], _BINS
    for place in range(len(names) - 1, -1, -1):
        if taken[place, left]:
            members.append(names[place])
            left -= costs[place]
    return float(value[_BINS]), members
