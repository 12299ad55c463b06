"""A running model whose next word is drawn from what tuning made likelier: log p_tuned - log p_base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from interventions.logit_arithmetic import implausible
from interventions.logit_shift import LogitShift, ShiftHook
from workbench.engine.context import ForwardContext
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor


@dataclass(frozen=True)
class Contrast:
    """A recipe: logits are replaced by log p_tuned - log p_base over the words with p_tuned >= a max p_tuned."""

    tuned: AdaptedModel
    base: AdaptedModel
    plausibility: float

    @contextmanager
    def applied(self, model: AdaptedModel) -> Iterator[Any]:
        """``model`` (the tuned one) gives the contrast as its logits inside, also in ``generate``."""
        shift = LogitShift(self.tuned, self.base, plausibility=self.plausibility)
        shift.validate(model)
        with _ContrastHook(shift, model).on(model):
            yield


class _ContrastHook(ShiftHook):
    def combined(self, own: Tensor, tuned: Tensor, base: Tensor, ctx: ForwardContext) -> Tensor:  # noqa: ARG002
        return contrasted(own, tuned, base, self.shift.plausibility)


def contrasted(
    own: Float[Tensor, "*place vocab"],
    tuned: Float[Tensor, "*place smaller"],
    base: Float[Tensor, "*place small"],
    plausibility: float,
) -> Float[Tensor, "*place vocab"]:
    """log p_tuned - log p_base in single precision, -inf for implausible words and those that only one model has."""
    width = min(tuned.shape[-1], base.shape[-1], own.shape[-1])
    t, b = (side[..., :width].float() for side in (tuned, base))
    change = t.log_softmax(-1) - b.log_softmax(-1)
    change = change.masked_fill(~change.isfinite() | implausible(t, plausibility), -torch.inf)
    return torch.cat([change, change.new_full((*own.shape[:-1], own.shape[-1] - width), -torch.inf)], dim=-1)
