"""Attention to chosen tokens made stronger or weaker in chosen heads (ZeroTuning, user-span steering)."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch

from interventions.base import SiteIntervention
from interventions.checks import Label, as_label, by_layer, check_heads, site_in
from interventions.key_scope import KeyScope
from interventions.scope import Change, Scope
from interventions.strength import Amount, Number, Prepared, trains, working
from workbench.engine import attention
from workbench.engine.attention import AttentionLogits
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.positions import PositionSpec, Selection, Where, where
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Tensor

IN_MASK = "attention mask"
EAGER = "eager"
_TOLD: weakref.WeakSet[Any] = weakref.WeakSet()


class EagerAttentionWarning(UserWarning):
    """Attention weights exist only in eager attention, so the model runs it while a recipe changes them.

    Not said where the change is a bias in the mask of sdpa, which then stays.
    """


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
    A model that runs sdpa goes on doing so, with log(gamma) in its attention mask, one per head; layers whose pattern
    something else reads or changes run eager attention, as all layers of other implementations do (:meth:`path`).
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
            labels = [self.heads] if isinstance(self.heads, str) else self.heads
            self._set("heads", tuple(sorted({as_label(label, "head") for label in labels})))
        if isinstance(self.gamma, Mapping):
            self._set("gamma", {as_label(head, "head"): factor for head, factor in sorted(self.gamma.items(), key=str)})
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
        return super().neutral or self.heads == () or all(gamma == 1 for gamma in self._gammas)

    def validate(self, model: AdaptedModel) -> None:
        """Every head must exist."""
        if self.heads is not None:
            check_heads(model, [as_label(head, "head") for head in self.heads])

    def hooks(self, model: AdaptedModel) -> list[SiteHook]:
        """One hook per layer with chosen heads; says once per model where it now runs eager attention."""
        made = super().hooks(model)
        if made and self.path(model) != IN_MASK:
            tell_eager(model)
        return made

    def path(self, model: AdaptedModel) -> str:
        """How ``model`` computes this: ``"attention mask"`` (sdpa stays) or ``"eager"``."""
        at = model.hub.geometry.attention_layers
        sinks = bool(at) and hasattr(model.hub.module(site_in(model, "pattern", at[0])), "sinks")
        uses_sdpa = model.inner.config._attn_implementation in ("sdpa", attention.SDPA_NAME)
        return IN_MASK if uses_sdpa and not sinks else EAGER

    def _hook(self, site: Site, change: Change) -> SiteHook:
        hook = super()._hook(site, change)
        assert isinstance(change, _Rescaling)
        if change.sinks:
            return hook
        heads = None if change.heads is None else tuple(change.heads.nonzero()[:, 0].tolist())
        return replace(hook, bias=partial(change.bias, self.scope()), heads=heads)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One rescaling per layer that has chosen heads."""
        keys = KeyScope(self.keys)
        if self.heads is None:
            return [self._at(model, layer, None, keys) for layer in range(model.n_layers)]
        heads_of_layer = by_layer([as_label(head, "head") for head in self.heads])
        made = [self._at(model, layer, heads, keys) for layer, heads in heads_of_layer.items()]
        shared = _AllLayers(keys, [rescaling for _, rescaling in made])
        return [(site, replace(rescaling, shared=shared, place=place)) for place, (site, rescaling) in enumerate(made)]

    def _at(self, model: AdaptedModel, layer: int, heads: list[int] | None, keys: KeyScope) -> tuple[Site, _Rescaling]:
        site = site_in(model, "pattern", layer)
        sinks = hasattr(model.hub.module(site), "sinks")
        marks = None if heads is None else torch.zeros(model.n_heads, dtype=torch.bool)
        if marks is not None:
            marks[heads] = True
        gammas = Prepared.constant(lambda: self._by_head(layer, model.n_heads))
        gamma = gammas if isinstance(self.gamma, Mapping) else float(self.gamma)
        zero = any(gamma == 0 for gamma in self._gammas)
        return site, _Rescaling(gamma, Amount(self.strength), keys, marks, sinks=sinks, zero=zero)

    def _by_head(self, layer: int, n_heads: int) -> Float[Tensor, "head 1 1"]:
        """The factor of each head of a layer, 1 where none is named."""
        assert isinstance(self.gamma, Mapping)
        return torch.tensor([float(self.gamma.get(f"L{layer}H{head}", 1.0)) for head in range(n_heads)])[:, None, None]

    def _blended(self, selection: Selection, new: Tensor, old: Tensor) -> Tensor:
        if selection.everything:
            return new
        assert selection.mask is not None
        return torch.where(selection.mask[:, None, :, None], new, old)


@dataclass(frozen=True, eq=False)
class _Rescaling:
    """What happens in one layer: to its pattern, or as a bias on its attention logits."""

    gamma: float | Prepared
    """One factor, or one per head [head, 1, 1]."""
    amount: Amount
    keys: KeyScope
    heads: Bool[Tensor, " head"] | None
    """None: all of them."""
    sinks: bool
    zero: bool
    """Whether some factor is 0, so that a query can be left without a key."""
    shared: _AllLayers | None = None
    place: int = 0
    """Which of the layers of ``shared`` this is."""
    logs: Prepared = field(init=False)

    def __post_init__(self) -> None:
        made = Prepared(self._logs, trained=trains(self.amount.value), rows=self.amount.per_row)
        object.__setattr__(self, "logs", made)

    def __call__(self, pattern: Tensor, ctx: ForwardContext) -> Tensor:
        gamma = self._factor(pattern, ctx) ** self.amount(pattern, ctx)
        scaled_keys = self.keys(ctx, pattern.shape[-1])[:, None, None, :]
        if self.heads is not None:
            scaled_keys = scaled_keys & self.heads.to(pattern.device)[:, None, None]
        return rescaled(pattern, scaled_keys, gamma, sinks=self.sinks)

    def bias(self, scope: Scope, logits: AttentionLogits, ctx: ForwardContext) -> Tensor | None:
        """log(gamma) at the chosen heads, queries and keys, 0 elsewhere [batch, head|1, query|1, key]."""
        selection = scope(ctx)
        if selection.nothing:
            return None
        bias = self._by_key(logits, ctx)
        if not selection.everything:
            assert selection.mask is not None
            bias = torch.where(selection.mask[:, None, :, None], bias, 0.0)
        if self.zero:
            shut = bias.isneginf()
            left = (logits.visible() & ~shut).any(-1, keepdim=True)
            bias = torch.where(left, bias, 0.0)
            logits.block(shut & left)
        return bias

    def _by_key(self, logits: AttentionLogits, ctx: ForwardContext) -> Tensor:
        """log(gamma) at chosen keys, 0 at others; made once per forward pass where all layers share it."""
        if self.shared is not None:
            return self.shared(logits, ctx)[self.place]
        place = ("log gamma", id(self.keys), logits.n_keys)
        shared = isinstance(self.gamma, float) and self.heads is None
        made: Tensor | None = ctx.scratch.get(place) if shared else None
        if made is None:
            made = torch.where(self.keys(ctx, logits.n_keys)[:, None, None, :], self.logs(logits.query, ctx), 0.0)
            if shared:
                ctx.scratch[place] = made
        return made

    def _logs(self, query: Tensor, ctx: ForwardContext) -> Float[Tensor, "rows heads 1 1"]:
        """strength * log(gamma) of every head (or of all alike), 0 where none is chosen; in the dtype of ``query``."""
        factor, amount = self._factor(query, ctx), self.amount(query, ctx)
        logs = torch.as_tensor(factor, dtype=working(query.dtype), device=query.device).log() * amount
        logs = logs if isinstance(amount, float) else torch.where(amount == 0, 0.0, logs)  # 0 ** 0 is 1
        if self.heads is not None:
            logs = torch.where(self.heads.to(query.device)[:, None, None], logs, 0.0)
        logs = logs.view(-1, *logs.shape[-3:]) if logs.ndim >= 3 else logs.view(1, 1, 1, 1)
        return logs.to(query.dtype)

    def _factor(self, value: Tensor, ctx: ForwardContext) -> float | Tensor:
        return self.gamma if isinstance(self.gamma, float) else self.gamma(value, ctx)


class _AllLayers:
    """log(gamma) at chosen keys of all layers, made in one operation by the first of them in a forward pass."""

    def __init__(self, keys: KeyScope, layers: Sequence[_Rescaling]) -> None:
        self.keys, self.layers = keys, layers

    def __call__(self, logits: AttentionLogits, ctx: ForwardContext) -> Sequence[Float[Tensor, "batch head 1 key"]]:
        query = logits.query
        name = ("log gammas", id(self), logits.n_keys, query.device, query.dtype)
        made: Sequence[Tensor] | None = ctx.scratch.get(name)
        if made is None:
            logs = torch.stack([rescaling.logs(query, ctx) for rescaling in self.layers])
            scaled_keys = self.keys(ctx, logits.n_keys)[None, :, None, None, :]
            made = ctx.scratch[name] = torch.where(scaled_keys, logs, 0.0).unbind(0)
        return made


def tell_eager(model: AdaptedModel) -> None:
    """Warn once per model that it now runs eager attention."""
    backend = model.inner.config._attn_implementation
    if backend in ("eager", *attention.NAMES) or model.inner in _TOLD:
        return
    _TOLD.add(model.inner)
    warnings.warn(
        f"{model.name} computes attention with {backend}, which shows no attention weights: inside this "
        "context the changed layers run eager attention (equal up to rounding, slower on long texts).",
        EagerAttentionWarning,
        stacklevel=4,
    )


def rescaled(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch heads 1 key"],
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
