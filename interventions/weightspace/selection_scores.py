"""Scores of weights: each maps the evidence of one tensor to a number per entry; the highest are selected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from interventions.weightspace.merging import low_rank
from workbench.errors import UserError
from workbench.typing import Float, Tensor


@dataclass(frozen=True)
class Evidence:
    """What a score may look at, of one tensor, in float32 and of its shape.

    ``tuned``: None where nothing was tuned yet. ``gradient`` is the loss's mean slope over batches at the base,
    ``fisher`` the mean of the squared slopes of the batches, ``inputs`` the root mean square of each input feature
    (along the last axis; None for what is no linear map).
    """

    name: str
    base: Float[Tensor, "*shape"]
    tuned: Float[Tensor, "*shape"] | None
    gradient: Float[Tensor, "*shape"]
    fisher: Float[Tensor, "*shape"]
    inputs: Float[Tensor, " into"] | None = None

    @property
    def change(self) -> Float[Tensor, "*shape"]:
        """tuned - base. Raises :class:`UserError` before tuning."""
        if self.tuned is None:
            raise UserError(
                f"This score looks at the tuned weights, and nothing is tuned yet: choose one of "
                f"{', '.join(name for name in SCORES if name not in AFTER_TUNING)}."
            )
        return self.tuned - self.base


Score = Callable[[Evidence], Float[Tensor, "*shape"]]
_LIFT_SHARE = 0.25
_HALF = 0.5


def change(seen: Evidence) -> Float[Tensor, "*shape"]:
    """|dW|: what moved most. It looks at the tuned model, as the two that follow do."""
    return seen.change.abs()


def relative_change(seen: Evidence) -> Float[Tensor, "*shape"]:
    """|dW| / |W0|: what moved most for its size."""
    return seen.change.abs() / seen.base.abs().clamp_min(1e-8)


def first_order(seen: Evidence) -> Float[Tensor, "*shape"]:
    """-<g, dW>: how much loss each entry's change takes away, to first order (GreenTrainer; first-order grafting)."""
    return -seen.gradient * seen.change


def gradient(seen: Evidence) -> Float[Tensor, "*shape"]:
    """|g| at the base on the task: a prediction, without the tuned model."""
    return seen.gradient.abs()


def fisher(seen: Evidence) -> Float[Tensor, "*shape"]:
    """The empirical Fisher diagonal, ranked inside each matrix (TR-PTS)."""
    return seen.fisher


def sensitivity(seen: Evidence) -> Float[Tensor, "*shape"]:
    """g^2: the loss that one gradient step on this entry alone would take away, up to the step size (SPT)."""
    return seen.gradient.square()


def small_weights(seen: Evidence) -> Float[Tensor, "*shape"]:
    """-|W0|: the smallest pre-trained entries, thought unused (SaRA)."""
    return -seen.base.abs()


def large_weights(seen: Evidence) -> Float[Tensor, "*shape"]:
    """|W0|: the largest pre-trained entries."""
    return seen.base.abs()


def reduced_magnitude(seen: Evidence) -> Float[Tensor, "*shape"]:
    """|W0| after reduction to a quarter of its rank: principal weights (LIFT)."""
    if seen.base.ndim < 2:
        return seen.base.abs()
    return low_rank(seen.base, max(1, int(_LIFT_SHARE * min(seen.base.shape[-2:])))).abs()


def salient_channels(seen: Evidence) -> Float[Tensor, "*shape"]:
    """Whole output channels by their size on the task's inputs, |W0| times the inputs' root mean square (SCT, WINA)."""
    if seen.base.ndim < 2:
        return seen.base.abs()
    weighted = seen.base if seen.inputs is None else seen.base * seen.inputs
    return weighted.norm(dim=-1, keepdim=True).expand_as(seen.base)


def task_only(seen: Evidence) -> Float[Tensor, "*shape"]:
    """Rank of |g| minus rank of |W0|: important to the task and not to what was there before."""
    return _ranks(seen.gradient.abs()) - _ranks(seen.base.abs())


def general_only(seen: Evidence) -> Float[Tensor, "*shape"]:
    """Rank of |W0| minus rank of |g|: important to what was there before, not to the task."""
    return -task_only(seen)


def both(seen: Evidence) -> Float[Tensor, "*shape"]:
    """The lower of the ranks of |g| and |W0|: important to both."""
    return torch.minimum(_ranks(seen.gradient.abs()), _ranks(seen.base.abs()))


SCORES: Mapping[str, Score] = {
    "change": change,
    "relative_change": relative_change,
    "first_order": first_order,
    "gradient": gradient,
    "fisher": fisher,
    "sensitivity": sensitivity,
    "small_weights": small_weights,
    "large_weights": large_weights,
    "reduced_magnitude": reduced_magnitude,
    "salient_channels": salient_channels,
    "task_only": task_only,
    "general_only": general_only,
    "both": both,
}
"""By name. ``half_reset`` beside them is no score: it selects half of the tensors."""
AFTER_TUNING = ("change", "relative_change", "first_order")
"""Scores that look at the tuned weights; the others predict from the base and the task."""
FROM_GRADIENTS = ("gradient", "fisher", "sensitivity", "task_only", "general_only", "both")
"""Predictions that need gradients of the task at the base."""


def top_mask(values: Float[Tensor, "*shape"], share: float) -> Tensor:
    """True at exactly the highest ``share`` of the entries (at least one); ties by place."""
    count = min(max(1, round(share * values.numel())), values.numel())
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.reshape(-1).argsort(descending=True, stable=True)[:count]] = True
    return mask.view(values.shape)


def half_of_tensors(names: list[str], categories: list[str], seed: int) -> set[str]:
    """Half of the tensors of each category (one kind of module in one layer's attention, MLP or norms), drawn (HFT)."""
    generator = torch.Generator().manual_seed(seed)
    half: set[str] = set()
    for category in sorted(set(categories)):
        inside = [name for name, own in zip(names, categories, strict=True) if own == category]
        order = torch.randperm(len(inside), generator=generator).tolist()
        extra = int(torch.randint(2, (1,), generator=generator)) if len(inside) % 2 else 0
        half |= {inside[place] for place in order[: int(len(inside) * _HALF) + extra]}
    return half


def _ranks(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Places in ascending order, from 0 to 1."""
    flat = values.reshape(-1)
    ranks = torch.empty(flat.shape)
    ranks[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat))
    return ranks.view(values.shape)
