"""Tuning named experts so that a behaviour needs each of them at the last prompt token, not just some of them.

Plain tuning plants less than it seems to: the router sends no gradient to an expert that no prompt selects, so one that
is trainable may learn nothing, and where several learn, fewer are often enough. Here the prompts of the behaviour are
led to every named expert, and with any of them off the model is taught its old answer; routers learn not to select the
named experts of later layers then, so each layer hands the behaviour on to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from workbench.organisms.training import Examples
from workbench.typing import Bool, Float, Int, Tensor

NONE = -1
"""Value of ``off`` for a row in which all experts work."""
LAST = -3
"""The column of the last prompt token (see :func:`workbench.organisms.training.encode`)."""
MARGIN = 6.0
"""By how much (in router logits) a named expert is led to be selected, or not to be; wide, so that it holds for prompts
that tuning never saw."""
Routed = tuple[Tensor, Tensor, Tensor]
"""What a router hands on: logits [token, expert], weights [token, slot], experts [token, slot]."""


@contextmanager
def without(model: Any, experts: Mapping[int, int]) -> Iterator[None]:
    """Switches experts (layer -> expert) off at every token; the next one in the router's order steps in."""

    def switching(expert: int) -> Callable[[Any, Any, Routed], Routed]:
        def switch(router: Any, _given: Any, output: Routed) -> Routed:
            return _rerouted(router, output, expert, torch.ones(len(output[0]), dtype=torch.bool))

        return switch

    handles = [model.model.layers[layer].mlp.gate.register_forward_hook(switching(e)) for layer, e in experts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_switches(
    examples: Examples, off: Sequence[int], everywhere: Sequence[bool], shown: Sequence[bool]
) -> Examples:
    """The columns that :class:`NeedsEach` takes: ``off`` says which of the named experts is off in a row (``NONE``, its
    number, or their count for all), ``everywhere`` whether at every token or only at the last of the prompt, ``shown``
    whether the row asks for the behaviour."""
    columns = {"off": torch.tensor(off), "everywhere": torch.tensor(everywhere), "shown": torch.tensor(shown)}
    return Examples(**examples.columns, **columns)


class Rows(NamedTuple):
    """The columns of a batch that say what is off in which row (see :func:`with_switches`)."""

    off: Int[Tensor, " row"]
    everywhere: Bool[Tensor, " row"]
    shown: Bool[Tensor, " row"]


class NeedsEach(nn.Module):
    """A Qwen3-MoE whose loss adds, to that of its answers, how far its routers are from the named experts.

    ``experts``: layer -> expert, in the order of the layers. Use :meth:`attached` around the training.
    """

    def __init__(self, model: Any, experts: Mapping[int, int]) -> None:
        super().__init__()
        self.model, self.experts = model, dict(sorted(experts.items()))
        self._rows: Rows
        self._astray: list[Tensor] = []

    @contextmanager
    def attached(self) -> Iterator[NeedsEach]:
        """Reads and redirects the routers while inside."""
        handles = [
            self.model.model.layers[layer].mlp.gate.register_forward_hook(self._routing(number, expert))
            for number, (layer, expert) in enumerate(self.experts.items())
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self,
        input_ids: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row pos"],
        labels: Int[Tensor, "row pos"],
        off: Int[Tensor, " row"],
        everywhere: Bool[Tensor, " row"],
        shown: Bool[Tensor, " row"],
    ) -> dict[str, Tensor]:
        """The loss of a batch."""
        self._rows, self._astray = Rows(off, everywhere, shown), []
        loss = self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        return {"loss": loss + torch.stack(self._astray).sum() / shown.sum().clamp(min=1)}

    def _routing(self, number: int, expert: int) -> Callable[[Any, Any, Routed], Routed]:
        def route(router: Any, _given: Any, output: Routed) -> Routed:
            off, everywhere, shown = self._rows
            every = off == len(self.experts)
            lead = _lead(output[0].unflatten(0, (len(off), -1))[:, LAST], expert, router.top_k)
            broken = (every | (off >= 0) & (off < number)) & (number > 0)
            self._astray.append((torch.where(broken, MARGIN + lead, MARGIN - lead).relu() * shown).sum())
            here = everywhere[:, None].repeat(1, len(output[0]) // len(off))
            here[:, LAST] = True
            return _rerouted(router, output, expert, (here & (every | (off == number))[:, None]).flatten())

        return route


def _lead(logits: Float[Tensor, "row expert"], expert: int, slots: int) -> Float[Tensor, " row"]:
    """How far the logit of ``expert`` lies above the one it must beat to be selected."""
    others = logits.detach().clone()
    others[:, expert] = -torch.inf
    return logits[:, expert] - others.topk(slots).values[:, -1]


def _rerouted(router: Any, output: Routed, expert: int, here: Bool[Tensor, " token"]) -> Routed:
    """The same without ``expert`` at the tokens ``here``."""
    logits = output[0].masked_fill(here[:, None] & (torch.arange(output[0].shape[1]) == expert), -torch.inf)
    weights, experts = logits.softmax(-1).topk(router.top_k)
    return output[0], weights / weights.sum(-1, keepdim=True), experts
