"""Several tuned models of one base, whose changes move the running model together, by live or by matched weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from interventions.logit_arithmetic import beyond, implausible, matched_amounts, shifted, without
from interventions.logit_hook import UNSHIFTED, LogitHook
from interventions.logit_intervention import LogitIntervention
from interventions.logit_shift import MATCHED
from interventions.other_models import OtherModel, Reader, as_other
from interventions.packing import pack
from interventions.strength import Amount, Strength, as_strength
from interventions.voice_reader import Heard, Voice, VoiceReader
from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Where, where
from workbench.errors import UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@method(
    "logit-fusion",
    group="decoding",
    question="What if several small tuned models each move the next word, with weights that may change?",
    kind="intervention",
    papers=(
        "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion",
        "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
        "Tuning Language Models by Proxy",
    ),
)
@dataclass(frozen=True, eq=False, repr=False)
class LogitFusion(LogitIntervention):
    """logits + the sum over experts of weight * (logits of the expert - logits of ``base``).

    With numbers as ``weights`` it is emulated fine-tuning with several rewards, such as helpful against harmless, whose
    weights are a live slider (:meth:`with_weights`). With ``weights="matched"`` each token gets weights of its own, so
    that the fused distribution lies as far from the running model's as each expert's from its base (Dynamic Logits
    Fusion for several experts). Each model is read once per token. ``top_p`` and ``plausibility`` (by the running
    model, and by any expert) cut as in :class:`LogitShift`.

    Example:
        ``iv.LogitFusion({"helpful": a, "harmless": b}, base, {"helpful": 0.7, "harmless": 0.3})``
    """

    experts: Mapping[str, Any]
    base: Any
    weights: Mapping[str, float] | str = MATCHED
    top_p: float = field(default=1.0, kw_only=True)
    plausibility: float = field(default=0.0, kw_only=True)
    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        where(self.positions)
        if not self.experts:
            raise UserError("There is nothing to fuse: give at least one expert.")
        experts = {str(name): as_other(expert, str(name)) for name, expert in self.experts.items()}
        object.__setattr__(self, "experts", experts)
        object.__setattr__(self, "base", as_other(self.base, "base"))
        object.__setattr__(self, "strength", as_strength(self.strength))
        if isinstance(self.weights, str):
            if self.weights != MATCHED:
                raise UserError(f"weights is {self.weights!r}: give a number per expert, or {MATCHED!r}.")
        else:
            for name in self.weights:
                if name not in experts:
                    raise unknown_name("expert", name, experts)
            weights = {name: Voice(None, self.weights.get(name, 0.0)).weight for name in experts}
            object.__setattr__(self, "weights", weights)
        if not 0 < self.top_p <= 1 or not 0 <= self.plausibility <= 1:
            raise UserError("top_p is a share above 0, up to 1 (no filter), and plausibility one from 0 (none) to 1.")

    @property
    def models(self) -> dict[str, AdaptedModel | OtherModel]:
        """The base and every expert."""
        return {"base": self.base, **self.experts}

    @property
    def silent(self) -> bool:
        """Whether no expert has a weight."""
        return isinstance(self.weights, Mapping) and not any(self.weights.values())

    def hook(self, model: AdaptedModel) -> LogitHook:
        """Reads the base and every expert once."""
        return _FusionHook(self, model)

    def with_weights(self, **weights: float) -> LogitFusion:
        """The same with other weights; experts that are not named keep theirs, or get 0 where they were matched."""
        before = self.weights if isinstance(self.weights, Mapping) else {}
        return replace(self, weights={**before, **weights})

    def with_models(self, base: Any, **experts: Any) -> LogitFusion:
        """The same with the models at hand, after loading a recipe file.

        Raises:
            UserError: A model has other weights than the one that was saved, or an expert is missing or unknown.
        """
        if odd := sorted(set(self.experts) ^ set(experts)):
            raise unknown_name("expert", odd[0], self.experts)
        models = self.matching({"base": base, **experts})
        return replace(self, base=models.pop("base"), experts=models)

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings, with every model by name and hash."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["base"] = vars(OtherModel.of(self.base))
        values["experts"] = {name: vars(OtherModel.of(expert)) for name, expert in self.experts.items()}
        return pack(values, self.scopes)


class _FusionHook(LogitHook):
    """Reads the base and every expert once."""

    def __init__(self, fusion: LogitFusion, model: AdaptedModel) -> None:
        super().__init__(fusion.positions, model)
        self.fusion, self.amount = fusion, Amount(fusion.strength)
        voices = [Voice(speaker) for speaker in (*fusion.experts.values(), fusion.base)]
        self.keys = [voice.key(model) for voice in voices]
        keyed = zip(self.keys, voices, strict=True)
        self.heard = Heard({key: VoiceReader(voice) for key, voice in keyed if key is not None})

    def readers(self) -> Iterable[Reader]:
        return self.heard.readers.values()

    def read(self, kwargs: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:
        read = self.heard.logits(kwargs, ctx, cache)
        return tuple(ctx.scratch[UNSHIFTED] if key is None else read[key] for key in self.keys)

    def combined(self, own: Tensor, *others: Any) -> Tensor:
        *experts, base, ctx = others
        fusion, unshifted = self.fusion, ctx.scratch[UNSHIFTED]
        amount = self.amount(own, ctx)
        if isinstance(fusion.weights, str):
            weights = matched_amounts(unshifted, experts, base).unbind(-1)
        else:
            weights = tuple(torch.tensor(weight) for weight in fusion.weights.values())
        new = own
        for expert, weight in zip(experts, weights, strict=True):
            factor = weight.to(own.device)
            new = shifted(new, expert, base, (factor[..., None] if factor.ndim else factor) * amount)
        if fusion.top_p < 1:
            new = without(new, beyond(unshifted, fusion.top_p), amount)
        if fusion.plausibility > 0:
            cut = [implausible(expert, fusion.plausibility) for expert in experts]
            width = min(mask.shape[-1] for mask in cut)
            new = without(new, torch.stack([mask[..., :width] for mask in cut]).all(0), amount)
        return new
