"""A running model that hands the next word over to another one where it has been unsure for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from interventions.logit_hook import UNSHIFTED, LogitHook
from interventions.other_models import Reader, check_words
from workbench.engine.context import ForwardContext
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Tensor


@dataclass
class Decisions:
    """What was decided at each step of each row of a batch."""

    other: list[Bool[Tensor, " row"]] = field(default_factory=list)
    """Whether the other model wrote the token."""
    entropy: list[Float[Tensor, " row"]] = field(default_factory=list)
    """Of the running model, in nats."""


@dataclass(frozen=True, eq=False)
class EntropySwitch:
    """A recipe: the mean entropy of the running model over the last ``window`` tokens decides who writes.

    Above ``high`` the other model takes over, below ``low`` it gives back (hysteresis); between, whoever wrote goes on.
    With ``script`` [row, step] the choice is read from there instead, as the control needs.
    """

    other: AdaptedModel
    high: float
    low: float
    window: int
    log: Decisions
    script: Bool[Tensor, "row step"] | None = None

    @contextmanager
    def applied(self, model: AdaptedModel) -> Iterator[Any]:
        """``model`` writes with the other's help inside, in ``generate`` alone."""
        check_words(model, self.other)
        with _SwitchHook(self, model).on(model):
            yield


class _SwitchHook(LogitHook):
    def __init__(self, switch: EntropySwitch, model: AdaptedModel) -> None:
        super().__init__("all", model)
        self.switch, self.reader = switch, Reader(switch.other)

    def read(self, inputs: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:
        if ctx.generation is None or cache is None or ctx.generation.beams > 1:
            raise NotSupported("Models are switched while a text is generated with a cache and without beams.")
        return (self.reader.logits(inputs, ctx, cache),)

    def combined(self, own: Tensor, *others: Any) -> Tensor:
        other, ctx = others
        log_p = ctx.scratch[UNSHIFTED][:, -1].float().log_softmax(-1)
        entropy = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1)
        log = self.switch.log
        log.entropy.append(entropy.cpu())
        log.other.append(self._decided(log))
        by_other = log.other[-1].to(own.device)
        width = min(own.shape[-1], other.shape[-1])
        new = own.clone()
        new[by_other, -1] = -torch.inf
        new[by_other, -1, :width] = other[by_other, -1, :width].to(own.dtype)
        return new

    def _decided(self, log: Decisions) -> Bool[Tensor, " row"]:
        step = len(log.entropy) - 1
        if self.switch.script is not None:
            return self.switch.script[:, step]
        mean = torch.stack(log.entropy[-self.switch.window :]).mean(0)
        before = log.other[-1] if log.other else torch.zeros_like(mean, dtype=torch.bool)
        return (mean > self.switch.high) | (before & (mean >= self.switch.low))
