"""Attention to chosen tokens made stronger or weaker in chosen heads (ZeroTuning, user-span steering)."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from interventions.base import SiteIntervention
from interventions.checks import Label, as_label, by_layer, check_heads, site_in
from interventions.key_scope import KeyScope
from interventions.scope import Change
from interventions.strength import Amount, Number, Prepared, working
from workbench.engine import attention
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import PositionSpec, Selection, Where, where
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Tensor

_TOLD: weakref.WeakSet[Any] = weakref.WeakSet()


class EagerAttentionWarning(UserWarning):
    """Attention weights exist only in eager attention, so the model runs it while a recipe changes them."""


@contextmanager
def eager_expected() -> Iterator[None]:
    """No :class:`EagerAttentionWarning` inside: for probes whose users ask for attention weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EagerAttentionWarning)
        yield


@method(
    "attention-scale",
    group="attention",
    question="What if heads look more, or less, at chosen tokens?",
    kind="intervention",
    papers=("ZeroTuning: Unlocking the Initial Token's Power to Enhance Large Language Models Without Training",),
)
@dataclass(frozen=True, eq=False, repr=False)
class AttentionScale(SiteIntervention):
    """Attention weights of ``keys`` times gamma, all weights of the query then renormalised to their former sum.

    The same as adding log(gamma) to the keys' attention logits, so a learned sink (GPT-OSS) takes part in the
    renormalisation. ``heads``: ``"L3H5"`` or (3, 5); None: every head of every layer. ``keys`` are the tokens
    attended to and ``positions`` the queries that attend, both in the engine's language. ``gamma`` is one factor for
    all heads, or head -> factor, as ZeroTuning finds them: some heads want more of the first token, others less.
    ``strength`` is an exponent: gamma ** strength. A query whose whole weight lies on keys of gamma 0 stays as it is.
    """

    gamma: Number | Mapping[Label, Number]
    heads: Sequence[Label] | None = None
    keys: PositionSpec | Where = "first"

    scopes: ClassVar[tuple[str, ...]] = ("positions", "keys")

    def __post_init__(self) -> None:
        super().__post_init__()
        if where(self.keys).rows is not None:
            raise UserError("Rows are named in positions=, not in keys=: give Where(..., rows=...) there.")
        if self.heads is not None:
            given = [self.heads] if isinstance(self.heads, str) else self.heads
            self._set("heads", tuple(sorted({as_label(one, "head") for one in given})))
        if isinstance(self.gamma, Mapping):
            self._set("gamma", {as_label(head, "head"): one for head, one in sorted(self.gamma.items(), key=str)})
            if self.heads is not None and set(self.heads) != set(self.gamma):
                raise UserError("gamma names other heads than heads=: name the heads in gamma alone.")
            self._set("heads", tuple(sorted(self.gamma)))
        for gamma in self._gammas:
            if isinstance(gamma, bool) or not isinstance(gamma, Number) or not (math.isfinite(gamma) and gamma >= 0):
                raise UserError(f"Gamma is {gamma}: give a finite factor of 0 or more; 1 changes nothing.")

    @property
    def _gammas(self) -> list[Number]:
        return list(self.gamma.values()) if isinstance(self.gamma, Mapping) else [self.gamma]

    @property
    def neutral(self) -> bool:
        """No strength, gamma 1 everywhere or no heads."""
        return super().neutral or self.heads == () or all(one == 1 for one in self._gammas)

    def validate(self, model: AdaptedModel) -> None:
        """Every head must exist."""
        if self.heads is not None:
            check_heads(model, [as_label(one, "head") for one in self.heads])

    def hooks(self, model: AdaptedModel) -> list[SiteHook]:
        """One hook per layer with chosen heads; says once per model that it now runs eager attention."""
        made = super().hooks(model)
        backend = model.inner.config._attn_implementation
        if made and backend not in ("eager", attention.NAME) and model.inner not in _TOLD:
            _TOLD.add(model.inner)
            warnings.warn(
                f"{model.name} computes attention with {backend}, which shows no attention weights: inside this "
                "context the changed layers run eager attention (equal up to rounding, slower on long texts).",
                EagerAttentionWarning,
                stacklevel=2,
            )
        return made

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One rescaling per layer that has chosen heads."""
        keys = KeyScope(self.keys)
        if self.heads is None:
            return [self._at(model, layer, None, keys) for layer in range(model.n_layers)]
        chosen = by_layer([as_label(one, "head") for one in self.heads])
        return [self._at(model, layer, heads, keys) for layer, heads in chosen.items()]

    def _at(self, model: AdaptedModel, layer: int, heads: list[int] | None, keys: KeyScope) -> tuple[Site, Change]:
        site = site_in(model, "pattern", layer)
        sinks = hasattr(model.hub.module(site), "sinks")
        amount = Amount(self.strength)
        marks = torch.ones(model.n_heads, dtype=torch.bool) if heads is None else torch.zeros(model.n_heads).bool()
        marks[heads or slice(0)] = True
        gammas = Prepared.constant(lambda: self._by_head(layer, model.n_heads))

        def change(pattern: Tensor, ctx: ForwardContext) -> Tensor:
            factor = gammas(pattern, ctx) if isinstance(self.gamma, Mapping) else self.gamma
            gamma = factor ** amount(pattern, ctx)
            chosen = keys(ctx, pattern.shape[-1])[:, None, None, :] & marks.to(pattern.device)[:, None, None]
            return rescaled(pattern, chosen, gamma, sinks=sinks)

        return site, change

    def _by_head(self, layer: int, n_heads: int) -> Float[Tensor, "head 1 1"]:
        """The factor of each head of a layer, 1 where none is named."""
        assert isinstance(self.gamma, Mapping)
        return torch.tensor([float(self.gamma.get(f"L{layer}H{head}", 1.0)) for head in range(n_heads)])[:, None, None]

    def _blended(self, chosen: Selection, new: Tensor, old: Tensor) -> Tensor:
        if chosen.everything:
            return new
        assert chosen.mask is not None
        return torch.where(chosen.mask[:, None, :, None], new, old)


def rescaled(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch head 1 key"],
    gamma: Number | Tensor,
    *,
    sinks: bool,
) -> Float[Tensor, "batch head query key"]:
    """``pattern`` with the weights at ``keys`` times gamma, renormalised; bit-equal where no key is chosen.

    ``sinks``: what a query's weights lack to 1 lies on a sink, which takes part in the renormalisation.
    """
    p = pattern.to(working(pattern.dtype))
    scaled = torch.where(keys, p * gamma, p)
    before, after = p.sum(-1, keepdim=True), scaled.sum(-1, keepdim=True)
    if sinks:
        sink = (1 - before).clamp(min=0)
        before, after = before + sink, after + sink
    touched = keys.any(-1, keepdim=True) & (after > 0)
    return torch.where(touched, scaled * (before / after), p).to(pattern.dtype)
