"""Neurons that fire weakly are set to zero: CATS, WINA and plain magnitude, with a random choice as their control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from interventions.base import Intervention
from interventions.scope import Scope, blend
from interventions.strength import Amount, Number, Strength, as_strength, multiplied, working
from interventions.trace import watch
from workbench.engine.context import ForwardContext
from workbench.engine.families import submodule
from workbench.engine.hub import SiteHook
from workbench.engine.positions import PositionSpec, Where, where
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

Rule = Literal["cats", "wina", "magnitude", "random"]
_ACTIVATIONS = ("act_fn", "act", "activation_fn")
"""Where an MLP keeps its non-linearity."""


@method(
    "activation-threshold",
    group="activations",
    question="What if neurons that fire weakly do not fire at all?",
    kind="intervention",
    papers=(
        "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models",
        "WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference",
    ),
)
@dataclass(frozen=True, eq=False, repr=False)
class ActivationThreshold(Intervention):
    """MLP neurons below a layer's threshold are set to zero, token by token. ``thresholds``: layer -> threshold.

    ``rule``, what is compared: ``cats``, the absolute output of the MLP's non-linearity (Lee et al. 2024: the gate of a
    gated MLP); ``wina``, the absolute inner activation times the norm of its column of the down projection (Chen et al.
    2025); ``magnitude``, the absolute inner activation; ``random``, no comparison: the threshold is the share of the
    layer's neurons, drawn by ``seed``, that never fire (the control). :func:`probes.sparsity_curve` calibrates
    thresholds to a wanted sparsity. Threshold 0 changes nothing.

    Example:
        ``iv.ActivationThreshold({3: 0.05, 4: 0.04}, rule="cats")``
    """

    thresholds: Mapping[int, float] | Mapping[str, float]
    rule: Rule = "cats"
    seed: int = 0
    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)

    scopes: ClassVar[tuple[str, ...]] = ("positions",)

    def __post_init__(self) -> None:
        where(self.positions)
        thresholds = {
            str(layer): float(threshold) for layer, threshold in self.thresholds.items()
        }  # keys of a file are text
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "strength", as_strength(self.strength))
        if self.rule not in get_args(Rule):
            raise unknown_name("rule of a threshold", self.rule, get_args(Rule))
        for layer, threshold in thresholds.items():
            if not (math.isfinite(threshold) and threshold >= 0) or (self.rule == "random" and threshold > 1):
                raise UserError(f"The threshold of layer {layer} is {threshold}: give 0 or more (a share, for random).")

    @property
    def neutral(self) -> bool:
        """Whether this leaves the model exactly as it is."""
        silent = not any(self.thresholds.values())
        return silent or (not isinstance(self.strength, Tensor) and self.strength == 0)

    def validate(self, model: AdaptedModel) -> None:
        """Every layer must exist and have an MLP with neurons of its own."""
        for layer in self._by_layer:
            if not 0 <= layer < model.n_layers:
                raise UserError(f"Layer {layer} is out of range: the model has layers 0 to {model.n_layers - 1}.")
            if self.rule == "cats":
                nonlinearity(model, layer)
            else:
                model.hub.module(Site("mlp_post", layer))

    @property
    def _by_layer(self) -> dict[int, float]:
        return {int(layer): float(threshold) for layer, threshold in self.thresholds.items()}

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """Weak neurons do not fire inside."""
        changes = {} if self.neutral else {n: self._change(model, n, t) for n, t in self._by_layer.items() if t}
        if self.rule != "cats":
            hooks = [SiteHook(Site("mlp_post", layer), change, edit=True) for layer, change in changes.items()]
            with model.hooked(hooks):
                yield
            return
        with ExitStack() as stack:
            stack.enter_context(model.hooked([]))  # the hub then knows rows and positions of every forward pass
            for layer, change in changes.items():
                handle = nonlinearity(model, layer).register_forward_hook(_as_hook(model, change))
                stack.callback(handle.remove)
            yield

    def scaled(self, factor: Number) -> ActivationThreshold:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=multiplied(self.strength, factor))

    def _change(self, model: AdaptedModel, layer: int, threshold: float) -> Callable[[Any, ForwardContext], Any]:
        scope, amount, write = Scope(self.positions), Amount(self.strength), watch()
        silent, site = self._silent(model, layer, threshold), Site("mlp_post", layer).name

        def change(value: Tensor, ctx: ForwardContext) -> Tensor | None:
            selection = scope(ctx)
            if selection.nothing:
                return None
            off = silent(value)
            share = amount(value, ctx)
            if isinstance(share, float) and share == 1.0:
                new = value.masked_fill(off, 0.0)
            else:
                exact = value.to(working(value.dtype))
                new = torch.where(off, exact * (1.0 - share), exact).to(value.dtype)
            new = blend(selection, new, value)
            if write is not None:
                write(layer, site, value, new, ctx)
            return new

        return change

    def _silent(self, model: AdaptedModel, layer: int, threshold: float) -> Callable[[Tensor], Tensor]:
        """Which entries of a value [batch, pos, neuron] are set to zero."""
        if self.rule == "random":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)

            def drawn(value: Tensor) -> Tensor:
                order = torch.randperm(value.shape[-1], generator=generator.manual_seed(self.seed * 1_000_003 + layer))
                off = torch.zeros(value.shape[-1], dtype=torch.bool)
                off[order[: round(threshold * len(order))]] = True
                return off.to(value.device).expand(value.shape)

            return drawn
        weight = column_norms(model, layer) if self.rule == "wina" else None
        return lambda value: saliency(value, weight) < threshold


def saliency(value: Float[Tensor, "*place neuron"], weight: Tensor | None) -> Float[Tensor, "*place neuron"]:
    """What is compared with the threshold."""
    return value.abs() if weight is None else value.abs() * weight.to(value.device, value.dtype)


def column_norms(model: AdaptedModel, layer: int) -> Float[Tensor, " neuron"]:
    """The norm of what each neuron of a layer writes per unit: its column of the down projection."""
    down: Any = model.hub.module(Site("mlp_post", layer))
    down = getattr(down, "base_layer", down)
    weight: Tensor = down.weight
    weight = weight.detach().float()
    return weight.norm(dim=1) if type(down).__name__ == "Conv1D" else weight.norm(dim=0)


def nonlinearity(model: AdaptedModel, layer: int) -> nn.Module:
    """The module of the MLP's non-linearity.

    Raises:
        NotSupported: The MLP has none in a known place, or is a mixture of experts.
    """
    model.hub.module(Site("mlp_post", layer))
    mlp = submodule(model.inner, f"{model.hub.family.layers}.{layer}.{model.hub.family.mlp}")
    for name in _ACTIVATIONS:
        module = getattr(mlp, name, None)
        if isinstance(module, nn.Module):
            return module
    raise NotSupported(f"The MLP of layer {layer} has no non-linearity in a known place: use rule='magnitude'.")


def _as_hook(model: AdaptedModel, change: Callable[[Any, ForwardContext], Any]) -> Callable[..., Any]:
    hub, view = model.hub, model.role

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        ctx = hub.context
        if ctx is None or ctx.thread != get_ident() or hub.view != view:
            return None
        value = output if output.ndim > 2 else output.unflatten(0, (ctx.batch, -1))
        new = change(value, ctx)
        return None if new is None else new.view(output.shape)

    return hook
