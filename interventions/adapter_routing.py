"""Several LoRAs on one base, weighed token by token by a router (PHATGOOSE, MeteoRA, MHR, SMoRA, domain adapters)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from interventions.base import Intervention
from interventions.scope import Scope
from interventions.strength import Amount, Number, Strength, as_strength, multiplied, working
from interventions.trace import NO_LAYER, watch
from workbench.engine.context import ForwardContext
from workbench.engine.families import submodule
from workbench.engine.positions import PositionSpec, Where, where
from workbench.errors import UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

Rule = Literal["phatgoose", "meteora", "smora", "mhr", "soft", "sigmoid", "even"]


@method(
    "adapter-routing",
    group="routing",
    question="What if a router weighs several adapters token by token?",
    kind="intervention",
    papers=(
        "Learning to Route Among Specialized Experts for Zero-Shot Generalization",
        "MeteoRA: Multiple-tasks Embedded LoRA for Large Language Models",
        "Multi-Head Adapter Routing for Cross-Task Generalization",
        "Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task Learning",
        "Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained Language Models Memories",
    ),
)
@dataclass(frozen=True, eq=False, repr=False)
class AdapterRouting(Intervention):
    """Every adapted module's output + the sum over adapters of weight(x) * up(down(x)), weights by ``rule``.

    ``down`` and ``up``: module path -> [adapter, rank, in] and [adapter, out, rank] with scalings folded in;
    ``gates``: module path -> the router there. Rules: ``phatgoose``, softmax over the ``top_k`` of standardised gate
    times standardised input over the root of the width; ``meteora``, softmax over the top_k of gate times input;
    ``soft``, softmax over all (domain adapters); ``smora``, every single rank is an expert and the top_k ranks' weights
    sum to their number; ``mhr``, no input: gates [split, adapter] are logits of a task, whose sigmoids, normalised, mix
    the factors split by split (multi-head adapter routing); ``sigmoid``, each adapter by itself (how PHATGOOSE trains);
    ``even``, equal weights. ``closed`` adapters have weight 0, ``forced`` alone has weight 1, ``bias`` (adapter ->
    number) is added to its scores. :func:`probes.routing_map` trains routers and says what they do.

    Example:
        ``iv.AdapterRouting(**bank, gates=gates, rule="meteora").with_closed("law")``
    """

    names: Sequence[str]
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    rule: Rule = "even"
    top_k: int = 2
    closed: Sequence[str] = field(default=(), kw_only=True)
    forced: str | None = field(default=None, kw_only=True)
    bias: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)

    scopes: ClassVar[tuple[str, ...]] = ("positions",)

    def __post_init__(self) -> None:
        where(self.positions)
        for name in ("names", "closed"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "strength", as_strength(self.strength))
        object.__setattr__(self, "bias", {str(name): float(value) for name, value in self.bias.items()})
        if self.rule not in get_args(Rule):
            raise unknown_name("rule of a router", self.rule, get_args(Rule))
        for name in (*self.closed, *self.bias, *(() if self.forced is None else (self.forced,))):
            if name not in self.names:
                raise unknown_name("adapter", name, self.names)
        if set(self.closed) == set(self.names) or self.forced in self.closed:
            raise UserError("Every adapter is closed, or the forced one is: leave one open.")
        if self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: one adapter or more must be at work.")
        needs = set(self.down) if self.rule != "even" else set()
        if odd := sorted((set(self.down) ^ set(self.up)) | (needs - set(self.gates))):
            raise UserError(f"{odd[0]} lacks down, up or its gate: give all three for every module.")

    @property
    def neutral(self) -> bool:
        """Whether this leaves the model exactly as it is."""
        return not self.down or (not isinstance(self.strength, Tensor) and self.strength == 0)

    def with_closed(self, *names: str) -> AdapterRouting:
        """The same with these adapters closed too."""
        return replace(self, closed=(*self.closed, *names))

    def with_forced(self, name: str) -> AdapterRouting:
        """The same with one adapter alone at work on every token."""
        return replace(self, forced=name, closed=())

    def validate(self, model: AdaptedModel) -> None:
        """Every module must exist with the adapters' widths."""
        for path, down in self.down.items():
            module = submodule(model.inner, path)
            if module is None:
                raise UserError(f"This model has no module {path}: the adapters were made for another base.")
            weight = getattr(getattr(module, "base_layer", module), "weight", None)
            shape = (self.up[path].shape[1], down.shape[2])
            if weight is not None and tuple(weight.shape) not in (shape, shape[::-1]):
                raise UserError(
                    f"The adapters at {path} go from {shape[1]} to {shape[0]}, and this model's module is "
                    f"{list(weight.shape)}: they were made for another base."
                )

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The routed adapters act inside."""
        with ExitStack() as stack:
            stack.enter_context(model.hooked([]))  # the hub then knows rows and positions of every forward pass
            for path in () if self.neutral else self.down:
                handle = submodule(model.inner, path).register_forward_hook(self._hook(model, path))
                stack.callback(handle.remove)
            yield

    def scaled(self, factor: Number) -> AdapterRouting:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=multiplied(self.strength, factor))

    def weights(self, path: str, x: Float[Tensor, "*place in"]) -> Float[Tensor, "*place expert"]:
        """The weight of each adapter (of each rank, for smora; mean over splits, for mhr) for inputs of a module."""
        x = x.to(working(x.dtype))
        if self.rule == "mhr":
            return self._mixing(path).mean(0).to(x.device).expand(*x.shape[:-1], -1)
        count = len(self.names) * (self.down[path].shape[1] if self.rule == "smora" else 1)
        if self.forced is not None:
            alone = torch.tensor([float(name == self.forced) for name in self.names], device=x.device, dtype=x.dtype)
            return alone.repeat_interleave(count // len(self.names)).expand(*x.shape[:-1], -1)
        scores = self._scores(path, x, count) + self._shift(count, x)
        if self.rule == "sigmoid":
            return scores.sigmoid()
        size = count if self.rule in ("soft", "even") else min(self.top_k, count)
        top_scores = torch.full_like(scores, -torch.inf)
        top = scores.topk(size, dim=-1)
        top_scores = top_scores.scatter(-1, top.indices, top.values)
        return top_scores.softmax(-1) * (
            min(size, int((top_scores > -torch.inf).sum(-1).max())) if self.rule == "smora" else 1
        )

    def by_adapter(self, path: str, x: Float[Tensor, "*place in"]) -> Float[Tensor, "*place adapter"]:
        """The weights, of smora summed over an adapter's ranks and divided by all, so that they sum to 1."""
        weights = self.weights(path, x)
        if self.rule == "smora":
            weights = weights.unflatten(-1, (len(self.names), -1)).sum(-1)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)

    def _scores(self, path: str, x: Tensor, count: int) -> Tensor:
        if self.rule == "even":
            return x.new_zeros(*x.shape[:-1], count)
        gate = self.gates[path].to(x.device, x.dtype)
        if self.rule == "phatgoose":
            return _standardised(x) @ _standardised(gate).T / math.sqrt(x.shape[-1])
        return x @ gate.T

    def _shift(self, count: int, x: Tensor) -> Float[Tensor, " expert"]:
        """What is added to scores: biases, and -inf for what is closed."""
        each = count // len(self.names)
        open_ = [name not in self.closed and self.forced in (None, name) for name in self.names]
        shift = [self.bias.get(name, 0.0) if free else -math.inf for name, free in zip(self.names, open_, strict=True)]
        return torch.tensor(shift, device=x.device, dtype=x.dtype).repeat_interleave(each)

    def _mixing(self, path: str) -> Float[Tensor, "split adapter"]:
        logits = self.gates[path].float()
        shares = logits.sigmoid() * torch.exp(self._shift(len(self.names), logits))
        return shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)

    def change(self, path: str, x: Float[Tensor, "*place in"]) -> Float[Tensor, "*place out"]:
        """What is added to a module's output."""
        exact = x.to(working(x.dtype))
        down, up = (factors[path].to(exact.device, exact.dtype) for factors in (self.down, self.up))
        if self.rule == "mhr":
            return exact @ _mixed_down(down, self._mixing(path)).T @ _mixed_up(up, self._mixing(path)).T
        weights = self.weights(path, x)
        low = torch.einsum("...i,eri->...er", exact, down)
        if self.rule == "smora":
            weighed = low * weights.unflatten(-1, low.shape[-2:])
        else:
            weighed = low * weights[..., None]
        return torch.einsum("...er,eor->...o", weighed, up)

    def _hook(self, model: AdaptedModel, path: str) -> Callable[..., Any]:
        hub, view = model.hub, model.role
        scope, amount, write = Scope(self.positions), Amount(self.strength), watch()
        layer = _layer_of(path, f"{model.hub.family.layers}.")

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            ctx: ForwardContext | None = hub.context
            if ctx is None or ctx.thread != get_ident() or hub.view != view:
                return None
            selection = scope(ctx)
            if selection.nothing:
                return None
            x = args[0] if args[0].ndim > 2 else args[0].unflatten(0, (ctx.batch, -1))
            value = output.view(*x.shape[:-1], -1)
            moved = amount(value, ctx) * self.change(path, x)
            if not selection.everything:
                assert selection.mask is not None
                moved = torch.where(selection.mask[..., None], moved, 0.0)
            new = value + moved.to(value.dtype)
            if write is not None:
                write(layer, path, value, new, ctx)
            return new.view(output.shape)

        return hook


def _layer_of(path: str, stem: str) -> int:
    """The layer that a module belongs to."""
    return int(path.removeprefix(stem).split(".")[0]) if path.startswith(stem) else NO_LAYER


def _standardised(value: Float[Tensor, "*place in"]) -> Float[Tensor, "*place in"]:
    centred = value - value.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def _mixed_down(down: Float[Tensor, "adapter rank in"], shares: Tensor) -> Float[Tensor, "rank in"]:
    parts = down.chunk(len(shares), dim=-1)
    return torch.cat(
        [torch.einsum("e,eri->ri", own.to(part), part) for own, part in zip(shares, parts, strict=True)], -1
    )


def _mixed_up(up: Float[Tensor, "adapter out rank"], shares: Tensor) -> Float[Tensor, "out rank"]:
    parts = up.chunk(len(shares), dim=1)
    return torch.cat(
        [torch.einsum("e,eor->or", own.to(part), part) for own, part in zip(shares, parts, strict=True)], 0
    )
