"""Attention taken from sinks and handed to the other tokens (ACT: attention calibration)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from interventions.attention_scale import tell_eager
from interventions.base import SiteIntervention
from interventions.checks import Label, as_label, by_layer, check_heads, site_in
from interventions.scope import Change
from interventions.strength import Amount, Number, working
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import Selection
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Tensor


@method(
    "sink-handover",
    group="attention",
    question="What if attention that goes to sinks in mid-text goes to the other tokens?",
    kind="intervention",
    papers=(
        "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through "
        "Attention Calibration",
    ),
)
@dataclass(frozen=True, eq=False, repr=False)
class SinkHandover(SiteIntervention):
    """Weights on sinks times ``beta``; what that frees goes to the query's other tokens in proportion to their weights.

    A sink of a head is a prompt token other than the first that receives, from the prompt's queries that can see it,
    more than ``threshold`` of their attention on average (the released code's rule; .1 there, and 5 / length in the
    paper: ``threshold="paper"``). The first token keeps its weight. Sinks are found when the prompt runs, and stay.
    ``strength`` is the fraction of the way; ``heads`` None: every head of every layer.
    """

    beta: Number = 0.4
    heads: Sequence[Label] | None = None
    threshold: Number | str = 0.1
    strength: Any = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            labels = [self.heads] if isinstance(self.heads, str) else self.heads
            self._set("heads", tuple(sorted({as_label(label, "head") for label in labels})))
        if not (math.isfinite(self.beta) and 0 <= self.beta <= 1):
            raise UserError(f"beta is {self.beta}: give a share from 0 (nothing stays on sinks) to 1 (all of it).")
        if self.threshold != "paper" and (isinstance(self.threshold, str) or not 0 < self.threshold <= 1):
            raise UserError(f"threshold is {self.threshold!r}: give a share of attention above 0, or 'paper'.")

    @property
    def neutral(self) -> bool:
        """No strength, beta 1 or no heads."""
        return super().neutral or self.beta == 1 or self.heads == ()

    def validate(self, model: AdaptedModel) -> None:
        """Every head must exist."""
        if self.heads is not None:
            check_heads(model, [as_label(head, "head") for head in self.heads])

    def hooks(self, model: AdaptedModel) -> list[SiteHook]:
        """One hook per layer with chosen heads; says once per model that it now runs eager attention.

        What is handed over depends on the weights, so no mask can say it.
        """
        made = super().hooks(model)
        if made:
            tell_eager(model)
        return made

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One handover per layer that has chosen heads."""
        heads_of_layer = by_layer(by_label(model, self.heads))
        return [self._at(model, layer, heads) for layer, heads in heads_of_layer.items()]

    def _at(self, model: AdaptedModel, layer: int, heads: list[int]) -> tuple[Site, Change]:
        amount = Amount(self.strength)
        marks = torch.zeros(model.n_heads, dtype=torch.bool)
        marks[heads] = True
        seen: dict[str, Tensor] = {}

        def change(pattern: Tensor, ctx: ForwardContext) -> Tensor:
            if ctx.start == 0:
                seen["sinks"] = found_sinks(pattern, ctx, self.threshold) & marks.to(pattern.device)[:, None]
            sinks = _columns(seen["sinks"], ctx.start + ctx.length, pattern.shape[-1])
            first = first_key(ctx, pattern.shape[-1])
            return handed_over(pattern, sinks, first, self.beta, amount(pattern, ctx))

        return site_in(model, "pattern", layer), change

    def _blended(self, selection: Selection, new: Tensor, old: Tensor) -> Tensor:
        if selection.everything:
            return new
        assert selection.mask is not None
        return torch.where(selection.mask[:, None, :, None], new, old)


def by_label(model: AdaptedModel, heads: Sequence[Label] | None) -> list[str]:
    """The named heads, or all heads of layers that have some."""
    if heads is not None:
        return [as_label(head, "head") for head in heads]
    return [f"L{layer}H{head}" for layer in model.hub.geometry.attention_layers for head in range(model.n_heads)]


def _columns(sinks: Bool[Tensor, "batch head prompt"], total: int, n_keys: int) -> Bool[Tensor, "batch head key"]:
    """For ``n_keys`` keys: the last of all ``total`` columns in a sliding window, more than them in a static cache."""
    whole = torch.nn.functional.pad(sinks, (0, max(total, n_keys) - sinks.shape[-1]))
    return whole[..., -n_keys:] if n_keys < total else whole


def first_key(ctx: ForwardContext, n_keys: int) -> Bool[Tensor, "batch key"]:
    """True at each row's first real token."""
    mask = ctx.attention_mask
    whole = torch.zeros(ctx.batch, ctx.start + ctx.length, dtype=torch.bool, device=ctx.device)
    at = torch.zeros(ctx.batch, dtype=torch.long) if mask is None else mask.long().argmax(-1).cpu()
    whole[torch.arange(ctx.batch), at] = True
    missing = n_keys - whole.shape[1]
    return torch.nn.functional.pad(whole, (0, max(0, missing)))[:, -n_keys:]


def found_sinks(
    pattern: Float[Tensor, "batch head query key"], ctx: ForwardContext, threshold: Number | str
) -> Bool[Tensor, "batch head key"]:
    """Prompt tokens but the first that receive more than ``threshold`` on average from the prompt's queries behind.

    Means are over the queries that can see the key, else early tokens would look like sinks.
    """
    prompt = ctx.real & (ctx.index < ctx.prompt_lengths[:, None])
    n_keys = pattern.shape[-1]
    queries = prompt[:, None, :, None]
    keys = torch.nn.functional.pad(prompt, (0, max(0, n_keys - prompt.shape[1])))[:, -n_keys:]
    places = torch.arange(ctx.length, device=pattern.device)
    columns = torch.nn.functional.pad(places, (0, max(0, n_keys - ctx.length)), value=10**9)[-n_keys:]
    sees = (queries[:, 0] & (places[:, None] >= columns)[None])[:, None]
    received = (pattern * sees).sum(2) / sees.sum(2).clamp(min=1)
    limit: Any = 5.0 / ctx.prompt_lengths[:, None, None] if threshold == "paper" else threshold
    return (received > limit) & (keys & ~first_key(ctx, n_keys))[:, None]


def handed_over(
    pattern: Float[Tensor, "batch head query key"],
    sinks: Bool[Tensor, "batch head key"],
    first: Bool[Tensor, "batch key"],
    beta: Number,
    strength: float | Tensor,
) -> Float[Tensor, "batch head query key"]:
    """``pattern`` with sinks times beta and the freed weight on the others, in proportion; the first token keeps its
    own. Queries that see no other token stay as they are."""
    p = pattern.to(working(pattern.dtype))
    on_sinks = torch.where(sinks[:, :, None], p, 0.0)
    others = torch.where(sinks[:, :, None] | first[:, None, None], 0.0, p)
    room = others.sum(-1, keepdim=True)
    freed = (1.0 - beta) * on_sinks.sum(-1, keepdim=True)
    new = p - (1.0 - beta) * on_sinks + others * (freed / room.clamp(min=1e-30))
    moved = p + strength * (new - p)
    touched = sinks.any(-1)[:, :, None, None] & (room > 0)
    return torch.where(touched, moved, p).to(pattern.dtype)
