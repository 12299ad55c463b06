"""Routing decided anew under orders: which experts may not, need not or must take part."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from interventions.strength import Number
from workbench.engine.context import ForwardContext
from workbench.engine.routing import Routing, core_router, corrected, gate_scores, reroute, weigh
from workbench.typing import Bool, Float, Int, Tensor

_FEW = 256
"""Up to so many numbers Python looks through as fast as torch."""
_FIRST = 1e4
"""Added to the selection score of a forced expert; far above every probability, sigmoid and logit."""


@dataclass(frozen=True)
class Orders:
    """What is asked of one layer's experts; every tensor is [expert] or, for chosen tokens, [token, expert]."""

    excluded: Bool[Tensor, "... expert"] | None = None
    """Cannot be selected."""
    dropped: Bool[Tensor, "... expert"] | None = None
    """Keep their slot, with weight 0."""
    passed_on: Bool[Tensor, "... expert"] | None = None
    """As dropped, their weight going to the token's other experts."""
    forced: Bool[Tensor, "... expert"] | None = None
    """Always selected."""
    score: Float[Tensor, "... expert"] | None = None
    """Gate score of forced experts; NaN: the router's own; infinity: the highest of the token's."""
    only_if: frozenset[int] | None = None
    """Nothing changes unless one of these experts is selected; None: it may."""

    @classmethod
    def of(
        cls, off: list[int], on: list[int], mode: str, weight: Number | str, n_experts: int, router: nn.Module
    ) -> Orders:
        """Orders for every token of a layer."""
        named = _members(off, n_experts)
        field = {"replace": "excluded", "drop": "dropped", "drop_renorm": "passed_on"}.get(mode, "excluded")
        # Routers that first select groups: an excluded expert changes that choice even where it was not selected.
        only_if = None if on or (field == "excluded" and corrected(core_router(router))) else frozenset(off)
        orders = cls(only_if=only_if) if named is None else cls(**{field: named}, only_if=only_if)
        forced = _members(on, n_experts)
        if forced is None or weight == "own":
            return replace(orders, forced=forced)
        value = math.inf if weight == "max" else float(weight)
        score = torch.full((n_experts,), math.nan).masked_fill(forced, value)
        return replace(orders, forced=forced, score=score)

    def to(self, device: torch.device) -> Orders:
        """The same on ``device``."""
        marks = {name: None if mark is None else mark.to(device) for name, mark in self._marks().items()}
        return Orders(**marks, score=None if self.score is None else self.score.to(device), only_if=self.only_if)

    def only(self, tokens: Bool[Tensor, "token 1"]) -> Orders:
        """The same, for the chosen tokens alone."""
        marks = {name: None if mark is None else mark & tokens for name, mark in self._marks().items()}
        score = None if self.score is None else torch.where(tokens, self.score, math.nan)
        return Orders(**marks, score=score, only_if=self.only_if)

    def joined(self, other: Orders) -> Orders:
        """Both at once; the later score counts."""
        theirs = other._marks()
        marks = {name: _either(mark, theirs[name]) for name, mark in self._marks().items()}
        score = self.score if other.score is None else other.score
        if self.score is not None and other.score is not None:
            score = torch.where(other.score.isnan(), self.score, other.score)
        only_if = None if self.only_if is None or other.only_if is None else self.only_if | other.only_if
        return Orders(**marks, score=score, only_if=only_if)

    def _marks(self) -> dict[str, Tensor | None]:
        return {name: var for name, var in vars(self).items() if name not in ("score", "only_if")}


@dataclass
class _Standing:
    """The router's own decision in this pass of a layer, and the orders given so far."""

    routing: Routing
    orders: Orders


def obey(value: Routing, orders: Orders, router: nn.Module, ctx: ForwardContext) -> Routing:
    """The routing under ``orders`` and under all that were given before at this layer in this forward pass."""
    key = "orders", router
    before: _Standing | None = ctx.scratch.get(key)
    # A recomputation (gradient checkpointing) routes anew; the logits tell, since no order changes them.
    if before is not None and before.routing.logits.data_ptr() == value.logits.data_ptr():
        standing = _Standing(before.routing, before.orders.joined(orders))
    else:
        standing = _Standing(value, orders)
    ctx.scratch[key] = standing
    return decide(standing.routing, standing.orders, router)


def decide(own: Routing, orders: Orders, router: nn.Module) -> Routing:
    """``own`` [batch, pos, ...], the router's decision, changed as the orders say."""
    if _stands(own.experts, orders):
        return own
    weights, experts = own.weights.flatten(0, 1), own.experts.flatten(0, 1)
    if orders.excluded is not None or orders.forced is not None:
        logits = own.logits.flatten(0, 1)
        preferred = None if orders.forced is None else orders.forced * _FIRST
        weights, experts = reroute(router, logits, orders.excluded, preferred)
        if orders.score is not None:
            weights = _with_scores(logits, experts, orders.score, router)
    weights = _with_drops(weights, experts, orders)
    return Routing(own.logits, weights.view_as(own.weights).to(own.weights.dtype), experts.view_as(own.experts))


def _stands(experts: Int[Tensor, "batch pos k"], orders: Orders) -> bool:
    """Whether no token selected an expert that the orders name, so that the router's own decision is the answer.

    Asked on the CPU only, where the answer costs less than routing anew.
    """
    if orders.only_if is None or experts.device.type != "cpu":
        return False
    if experts.numel() <= _FEW:
        return orders.only_if.isdisjoint(experts.reshape(-1).tolist())
    return not bool(torch.isin(experts, torch.tensor(list(orders.only_if), dtype=experts.dtype)).any())


def _with_scores(logits: Tensor, experts: Tensor, score: Tensor, router: nn.Module) -> Tensor:
    own = gate_scores(router, logits)
    forced = _at(score, experts)
    forced = torch.where(forced == math.inf, own.amax(-1, keepdim=True).to(forced.dtype), forced)
    scores_of_experts = own.gather(1, experts)
    return weigh(
        router, torch.where(forced.isnan(), scores_of_experts, forced.to(scores_of_experts.dtype)), logits.dtype
    )


def _with_drops(weights: Tensor, experts: Tensor, orders: Orders) -> Tensor:
    if orders.dropped is not None:
        weights = weights.masked_fill(_at(orders.dropped, experts), 0.0)
    if orders.passed_on is not None:
        left = weights.masked_fill(_at(orders.passed_on, experts), 0.0)
        mass = left.sum(-1, keepdim=True)
        weights = torch.where(mass > 0, left * (weights.sum(-1, keepdim=True) / mass), left)
    return weights


def _at(marks: Tensor, experts: Tensor) -> Tensor:
    """The entries of [expert] or [token, expert] for the selected experts [token, k]."""
    return marks[experts] if marks.ndim == 1 else marks.gather(1, experts)


def _members(indices: list[int], n_experts: int) -> Bool[Tensor, " expert"] | None:
    if not indices:
        return None
    marks = torch.zeros(n_experts, dtype=torch.bool)
    marks[indices] = True
    return marks


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a | b
