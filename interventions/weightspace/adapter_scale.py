"""An adapter turned up, down or off: as a whole, per layer, per module, per rank."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from interventions.base import Intervention
from interventions.checks import as_tensor
from interventions.strength import Number, Strength
from interventions.weightspace.swapping import layer_of, one_strength, swapped
from workbench.engine.layered import laid
from workbench.errors import NotSupported, UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.adapter_layers import adapter_layers, bare_module
from workbench.typing import Float, Tensor


@method(
    "adapter-scale",
    group="weights",
    question="How much of the adapter is in effect?",
    kind="intervention",
    papers=("SALMONN: Towards Generic Hearing Abilities for Large Language Models",),
)
@dataclass(frozen=True, eq=False, repr=False)
class AdapterScale(Intervention):
    """base + t * (the adapter's change): t = ``scale`` * the layer's factor * every matching module's factor.

    ``layers``: layer -> factor. ``modules``: a part of a module's path ("mlp", "q_proj", "layers.3.self_attn") ->
    factor. ``ranks`` [rank]: a factor for each rank of a LoRA. ``outside``: the factor of modules in no layer.
    t = 0 is the base and t = 1 the adapter as it is, both bit for bit. Between, a plain LoRA is scaled itself; of every
    other kind of layer (IA3, VeRA, VB-LoRA, SHiRA, DoRA, ...) each module's output goes part of the way from what it is
    without the adapter, at the cost of computing both. An adapter that rewrote the base's own weights (KaSA, PiSSA,
    trained biases) has no base to go to and is refused: scale ``TaskVector.from_pair(pair)`` on the base instead.
    ``strength`` goes from no scaling at all (0) to this one (1).
    """

    scale: float = 1.0
    layers: Mapping[int, float] | Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, float] = field(default_factory=dict)
    ranks: Tensor | Sequence[float] | None = None
    outside: float = 1.0
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        # keys of a recipe file are text
        layers = {str(layer): float(factor) for layer, factor in self.layers.items()}
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "strength", one_strength(self.strength))
        if self.ranks is not None:
            object.__setattr__(self, "ranks", as_tensor(self.ranks, "ranks", ndim=(1,)))

    def validate(self, model: AdaptedModel) -> None:
        """The model must carry an unmerged adapter that is on, with the layers, modules and ranks named here."""
        adapted = dict(adapted_layers(model))
        if not adapted:
            raise UserError("This model carries no adapter to scale: give the tuned side of an adapter pair.")
        if model.role == "base":
            raise UserError("The base side of the pair has its adapter off: apply AdapterScale to pair.tuned.")
        for layer in self.layers:
            if not 0 <= int(layer) < model.n_layers:
                raise UserError(f"Layer {layer} is out of range: the model has layers 0 to {model.n_layers - 1}.")
        for part in self.modules:
            if not any(_contains(path, part) for path in adapted):
                raise UserError(
                    f"No module of the adapter has {part!r} in its path; it has {', '.join(sorted(adapted)[:6])}."
                )
        for path, layer in adapted.items():
            _check(path, layer, self._factor(path, model), self._rank_factors())
        if model.rewritten and any(self._factor(path, model) != 1.0 for path in adapted):
            raise NotSupported(f"The adapter cannot be scaled towards the base: {model.rewritten}. {_ON_THE_BASE}")

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The adapter is scaled inside; its numbers and switches come back after, exactly."""
        with model.active(), model.hub.guarded(), ExitStack() as stack:
            for path, layer in adapted_layers(model):
                _scale(layer, self._factor(path, model), self._rank_factors(), stack)
            yield

    @contextmanager
    def in_weights(self, model: AdaptedModel) -> Iterator[None]:
        """The same change held in the adapter's own tensors (B of each LoRA), so that saving it keeps it."""
        self.validate(model)
        with ExitStack() as stack:
            for path, layer in adapted_layers(model):
                factor, ranks = self._factor(path, model), self._rank_factors()
                if hasattr(layer, "modules_to_save"):
                    _scale_saved(layer, factor, stack)
                    continue
                for name in _active(layer):
                    if not _plain_lora(layer, name):
                        raise NotSupported(f"The adapter at {path} is no plain LoRA: its scaled form is none either.")
                    _scale_up(_up(layer, name), factor * (torch.ones(1) if ranks is None else ranks), stack)
            yield

    @property
    def _share(self) -> float:
        return one_strength(self.strength)

    def scaled(self, factor: Number) -> AdapterScale:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=self._share * factor)

    def _factor(self, path: str, model: AdaptedModel) -> float:
        layer, factors = layer_of(path, model), cast(Mapping[str, float], self.layers)
        full = self.scale * (self.outside if layer is None else factors.get(str(layer), 1.0))
        for part, factor in self.modules.items():
            full *= factor if _contains(path, part) else 1.0
        return full if self._share == 1.0 else 1.0 + self._share * (full - 1.0)

    def _rank_factors(self) -> Tensor | None:
        return 1.0 + self._share * (self.ranks - 1.0) if isinstance(self.ranks, Tensor) else None


_ON_THE_BASE = "Use (t * TaskVector.from_pair(pair)).graft(pair.base) on the base."


def _contains(path: str, part: str) -> bool:
    return re.search(rf"(^|\.){re.escape(part)}(\.|$)", path) is not None


def adapted_layers(model: AdaptedModel) -> Iterator[tuple[str, Any]]:
    """(path in the bare base, adapter layer) of every active adapter layer; nested ones each."""
    layers = {id(layer) for layer in adapter_layers(model.inner)}
    for path, module in model.inner.named_modules():
        if id(module) in layers and bare_module(module) is not None and _active(module):
            yield path.replace(".base_layer", ""), module


def _active(layer: Any) -> list[str]:
    """The active adapters that this layer really has."""
    available = getattr(layer, "_get_available_adapters", list)
    held = layer.modules_to_save if hasattr(layer, "modules_to_save") else available()
    return [name for name in layer.active_adapters if name in held]


def _plain_lora(layer: Any, adapter: str) -> bool:
    variants = getattr(layer, "lora_variant", None) or {}
    return adapter in getattr(layer, "scaling", {}) and hasattr(layer, "lora_A") and adapter not in variants


def _check(path: str, layer: Any, factor: float, ranks: Tensor | None) -> None:
    if getattr(layer, "merged_adapters", ()):
        raise UserError(f"The adapter is merged into {path}: unmerge it, or load base and adapter afresh.")
    names, saved = _active(layer), hasattr(layer, "modules_to_save")
    loras = all(_plain_lora(layer, name) for name in names)
    if factor not in (0.0, 1.0) and not (saved or loras) and _rewrites(layer, names):
        raise NotSupported(
            f"The adapter at {path} took its start out of the base's weights, so without it the module is not the "
            f"base and a factor of {factor:g} would not be base + t * change. {_ON_THE_BASE}"
        )
    if ranks is not None and not saved:
        if not loras:
            raise NotSupported(f"The adapter at {path} ({type(layer).__name__}) has no ranks to scale one by one.")
        for name in names:
            if _rank(layer, name) != len(ranks):
                raise UserError(
                    f"ranks has {len(ranks)} factors, but the adapter has rank {_rank(layer, name)} at {path}."
                )


def _rank(layer: Any, adapter: str) -> int:
    up = _up(layer, adapter)
    return int(up.shape[1]) // int(getattr(layer, "num_experts", 1) or 1)


def _up(layer: Any, adapter: str) -> nn.Parameter:
    """B of a LoRA: [out, rank], of fused experts [out, rank * expert], of an embedding [width, rank]."""
    if adapter in getattr(layer, "lora_embedding_B", {}):
        return layer.lora_embedding_B[adapter]
    return layer.lora_B[adapter].weight


def _scale(layer: Any, factor: float, ranks: Float[Tensor, " rank"] | None, stack: ExitStack) -> None:
    names = _active(layer)
    if hasattr(layer, "modules_to_save"):
        _scale_saved(layer, factor, stack)
    elif factor == 0.0 and not all(_plain_lora(layer, name) for name in names):
        # the layer's own off switch belongs to the pair's views, so the adapter is made inactive instead
        stack.enter_context(laid(("active adapter", id(layer)), [], partial(_activate, layer)))
    elif factor != 1.0 and not all(_plain_lora(layer, name) for name in names):
        stack.enter_context(_part_of_the_way(layer, factor))
    else:
        _scale_lora(layer, names, factor, ranks, stack)


@contextmanager
def _part_of_the_way(layer: Any, factor: float) -> Iterator[None]:
    """The layer's output at without + factor * (with - without). Hooks on the layer see only that."""
    whole = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        after = whole(*args, **kwargs)
        active = layer._active_adapter
        layer._active_adapter = []
        try:
            before = whole(*args, **kwargs)
        finally:
            layer._active_adapter = active
        return before + factor * (after - before)

    held = layer.__dict__.get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if held is None:
            del layer.__dict__["forward"]
        else:
            layer.forward = held


def _rewrites(layer: Any, names: list[str]) -> bool:
    """Whether the adapter's start was taken out of the weight below it."""
    variants = getattr(layer, "lora_variant", None) or {}
    return any("Kasa" in getattr(variants.get(name), "__name__", type(variants.get(name)).__name__) for name in names)


def _scale_lora(layer: Any, names: list[str], factor: float, ranks: Tensor | None, stack: ExitStack) -> None:
    for name in names:
        if factor != 1.0:
            scaled = layer.scaling[name] * factor
            stack.enter_context(laid(("scaling", id(layer), name), scaled, partial(_rescale, layer, name)))
        if ranks is not None:
            _scale_up(_up(layer, name), ranks, stack)


def _activate(layer: Any, adapters: Any) -> Any:
    before, layer._active_adapter = layer._active_adapter, adapters
    return before


def _rescale(layer: Any, adapter: str, factor: float) -> float:
    before, layer.scaling[adapter] = layer.scaling[adapter], factor
    return before


def _scale_up(up: nn.Parameter, factors: Float[Tensor, " rank_or_one"], stack: ExitStack) -> None:
    """B with each rank's column times its factor, for the time of ``stack``; untouched where all are 1."""
    if bool((factors != 1).any()):
        by_rank = up.data.view(up.shape[0], len(factors), -1)
        new = by_rank * factors.to(up).view(1, -1, 1)
        stack.enter_context(swapped({up: new.view(up.shape)}))


def _scale_saved(layer: Any, factor: float, stack: ExitStack) -> None:
    """A module that the adapter holds whole: its parameters go part of the way from the base's."""
    from interventions.weightspace.graft import part_way

    if factor == 1.0:
        return
    base = dict(layer.original_module.named_parameters())
    with torch.no_grad():
        new = {
            parameter: part_way(base[name].data, parameter.data, factor)
            for adapter in _active(layer)
            for name, parameter in layer.modules_to_save[adapter].named_parameters()
        }
    stack.enter_context(swapped(new))
