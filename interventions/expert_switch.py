"""Experts of a mixture switched off or on, with the meaning of "off" named (MoTE, Dahlke et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from interventions.base import Intervention, SiteIntervention
from interventions.checks import Label, as_label, by_layer, resolved
from interventions.conflicts import may_overlap
from interventions.rerouting import Orders, obey
from interventions.scope import Change
from interventions.strength import Number, for_rows
from workbench.engine.context import ForwardContext
from workbench.engine.positions import Selection
from workbench.engine.routing import Routing, core_router
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

Mode = Literal["replace", "drop", "drop_renorm", "force"]
_MODES = ("replace", "drop", "drop_renorm", "force")


@method(
    "expert-switch",
    group="experts",
    question="What if experts are switched off or forced on?",
    kind="intervention",
    papers=("Mixture of Tunable Experts -- Behavior Modification of DeepSeek-R1 at Inference Time",),
)
@dataclass(frozen=True, eq=False, repr=False)
class ExpertSwitch(SiteIntervention):
    """Experts ``off`` and ``on``, as ``"L3E12"`` or (3, 12); the layer is the model's, dense layers counted.

    What off means, ``mode``: ``replace``, the expert cannot be selected and the next best takes its slot, tokens
    that did not use it keep their routing; ``drop``, its slot stays empty, as if it put out zeros;
    ``drop_renorm``, its slot stays empty and its weight goes to the token's other experts in proportion.

    ``on`` (mode ``force`` when alone): always selected, pushing out the weakest. ``weight`` is then its gate score
    (probability; sigmoid in DeepSeek-V3; logit in GPT-OSS) before the family's own normalisation: ``own``, the
    router's; ``max``, the highest of the token's; or a number. Shared experts are never touched.
    """

    off: Sequence[Label] = ()
    on: Sequence[Label] = ()
    mode: Mode = "replace"
    weight: Literal["own", "max"] | Number = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("off", _labels(self.off))
        self._set("on", _labels(self.on))
        if self.mode not in _MODES:
            raise unknown_name("mode of an expert switch", self.mode, _MODES)
        if self.mode == "force" and self.off:
            raise UserError('mode="force" is about on=; say what off means: replace, drop or drop_renorm.')
        if isinstance(self.weight, str):
            if self.weight not in ("own", "max"):
                raise UserError(f'Weight {self.weight!r} is not "own", "max" or a number.')
        elif not math.isfinite(self.weight):
            raise UserError(f"Weight {self.weight} is not finite: give a number, own or max.")
        if both := sorted(set(self.off) & set(self.on)):
            raise UserError(f"Expert {both[0]} is to be both off and on: name it once.")
        amounts = self.strength if isinstance(self.strength, Tensor) else torch.tensor(self.strength)
        if not bool(((amounts == 0) | (amounts == 1)).all()):
            raise NotSupported("An expert is off or on: the strength of an ExpertSwitch is 0 or 1.")

    @property
    def neutral(self) -> bool:
        """No strength or no experts."""
        return super().neutral or not (self.off or self.on)

    def validate(self, model: AdaptedModel) -> None:
        """Every expert must exist, at least k be left in each layer, and at most k be forced."""
        if not model.n_experts:
            raise UserError(f"{model.name} has no experts to switch: it is a dense model.")
        self._check_layers(model, self.off, self.on)

    def validate_beside(self, others: Sequence[Intervention], model: AdaptedModel) -> None:
        """The same for all switches of a recipe that may act on the same positions."""
        off, on = set(self.off), set(self.on)
        for other in others:
            if isinstance(other, ExpertSwitch) and may_overlap(self.positions, other.positions):
                off |= set(other.off)
                on |= set(other.on)
        if both := sorted(off & on):
            raise UserError(f"Two interventions contradict: one switches {both[0]} off and another switches it on.")
        self._check_layers(model, off, on)

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One change of the routing per layer that has named experts."""
        off, on = by_layer(cast("Sequence[str]", self.off)), by_layer(cast("Sequence[str]", self.on))
        return [self._at(model, layer, off.get(layer, []), on.get(layer, [])) for layer in sorted({*off, *on})]

    def _at(self, model: AdaptedModel, layer: int, off: list[int], on: list[int]) -> tuple[Site, Change]:
        site = Site("router", layer)
        router = model.hub.module(site)
        orders = Orders.of(off, on, self.mode, self.weight, model.n_experts, router)
        scope = self.scope()
        there: dict[torch.device, Orders] = {}

        def change(value: Routing, ctx: ForwardContext) -> Routing | None:
            device = value.logits.device
            device_orders = there.get(device)
            if device_orders is None:
                device_orders = there[device] = orders.to(device)
            tokens = self._tokens(scope(ctx), ctx)
            if tokens is not None:
                device_orders = device_orders.only(tokens.to(device).view(-1, 1))
            routed = obey(value, device_orders, router, ctx)
            return None if routed is value else routed

        return site, change

    def _tokens(self, selection: Selection, ctx: ForwardContext) -> Tensor | None:
        """[batch, pos] where it acts; None: everywhere."""
        mask = None if selection.everything else selection.mask
        if isinstance(self.strength, Tensor):
            rows = for_rows(self.strength, ctx, "strengths").bool()[:, None]
            mask = rows & (ctx.real if mask is None else mask)
        return mask

    def _blended(self, selection: Selection, new: Any, old: Any) -> Any:  # noqa: ARG002
        return new  # the orders already say for which tokens they hold

    def _check_layers(self, model: AdaptedModel, off: Iterable[Label], on: Iterable[Label]) -> None:
        gone, forced = by_layer(cast("list[str]", list(off))), by_layer(cast("list[str]", list(on)))
        for layer in sorted({*gone, *forced}):
            if resolved(model, layer) not in model.moe_layers:
                raise UserError(f"Layer {layer} has no experts; layers with experts: {_ranges(model.moe_layers)}.")
            without, with_ = gone.get(layer, []), forced.get(layer, [])
            for expert in (*without, *with_):
                if expert >= model.n_experts:
                    raise UserError(
                        f"Expert L{layer}E{expert} is out of range: the model has experts 0 to {model.n_experts - 1}."
                    )
            _check_room(model, layer, without, with_)


def _check_room(model: AdaptedModel, layer: int, off: list[int], on: list[int]) -> None:
    left, k = model.n_experts - len(off), model.top_k
    if left < k:
        raise UserError(f"Layer {layer} would keep {left} experts, but each token needs {k}: leave at least {k} on.")
    if len(on) > k:
        raise UserError(
            f"Layer {layer} selects {k} experts per token; {len(on)} cannot all be forced: name at most {k}."
        )
    core = core_router(model.hub.module(Site("router", layer)))
    groups, n_used = getattr(core, "num_group", 1) or 1, getattr(core, "topk_group", 1) or 1
    size = model.n_experts // groups
    if len({expert // size for expert in on}) > n_used:
        raise UserError(f"Layer {layer} selects from {n_used} of {groups} groups; the forced experts lie in more.")
    counts = sorted(size - sum(expert // size == group for expert in off) for group in range(groups))
    needed = -(-k // n_used)
    able = [count for count in counts if count >= needed]
    others = [count for count in counts if count < needed]
    worst = sum(able[:n_used]) + sum(others[: max(0, n_used - len(able))])
    if worst < k:
        raise UserError(
            f"Layer {layer} selects from {n_used} of {groups} groups of {size}; what is left cannot always fill its "
            f"{k} slots: leave more experts of one group on."
        )


def _labels(experts: Sequence[Label] | str) -> tuple[str, ...]:
    if isinstance(experts, str):
        experts = (experts,)
    return tuple(
        sorted({as_label(expert, "expert") for expert in experts}, key=lambda label: by_layer([label]).popitem())
    )


def _ranges(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) == layers[-1] - layers[0] + 1 else str(list(layers))
