"""Next-word distributions of several voices, multiplied: products of experts, guidance, focused prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from interventions.logit_arithmetic import implausible, mixed, without
from interventions.logit_hook import UNSHIFTED, LogitHook
from interventions.logit_intervention import LogitIntervention
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

OWN = "own"
"""The running model's name among the voices."""


@method(
    "logit-mix",
    group="decoding",
    question="What if several models, or one with several prefixes, decide the next word together?",
    kind="intervention",
    papers=(
        "Focused Prefix Tuning for Controllable Text Generation",
        "Steering Guidance for Personalized Text-to-Image Diffusion Models",
    ),
)
@dataclass(frozen=True, eq=False, repr=False)
class LogitMix(LogitIntervention):
    """own * logits of the running model + the sum of weight * logits of every voice.

    A voice is a model, with a ``prefix`` that it alone reads behind the beginning of the text, or with its adapter at
    ``adapter_scale`` (Steering Guidance's weak model, theta_lambda = (1 - lambda) theta_0 + lambda theta_ft, without a
    second network). Formulas that this is: focused prefix, a * specific - (a - 1) * general; guidance,
    (1 + s) * tuned - s * weak; a product of experts, all weights 1. ``plausibility`` forbids words with less than that
    share of the likeliest word's probability under the voice ``judge`` (CGE's cut; needed wherever a weight is
    negative and large). Each distinct voice is read once per token, whatever else reads it in the formula; voices read
    the running model as it is without any intervention on logits. ``strength`` goes from the running model alone (0)
    to the formula (1).

    Example:
        ``iv.LogitMix({"weak": iv.Voice(pair.tuned, weight=-1.5, adapter_scale=0.5)}, own=2.5, plausibility=0.1)``
    """

    voices: Mapping[str, Any]
    own: float = 1.0
    plausibility: float = field(default=0.0, kw_only=True)
    judge: str = field(default=OWN, kw_only=True)
    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        where(self.positions)
        voices = {str(name): _voice(voice, str(name)) for name, voice in self.voices.items()}
        object.__setattr__(self, "voices", voices)
        object.__setattr__(self, "strength", as_strength(self.strength))
        if OWN in voices:
            raise UserError(f"A voice is called {OWN!r}, which is the running model: call it something else.")
        if self.judge not in (OWN, *voices):
            raise unknown_name("voice that judges plausibility", self.judge, (OWN, *voices))
        if not 0 <= self.plausibility <= 1:
            raise UserError(f"plausibility is {self.plausibility}: give a share from 0 (no filter) to 1.")
        if not voices and self.own == 0:
            raise UserError("Nobody speaks: give a voice, or own other than 0.")

    @property
    def models(self) -> dict[str, AdaptedModel | OtherModel]:
        """The voices' models."""
        return {name: voice.model for name, voice in self._voices.items()}

    @property
    def silent(self) -> bool:
        """Whether the running model alone speaks."""
        return self.own == 1 and self.plausibility == 0 and all(voice.weight == 0 for voice in self._voices.values())

    def hook(self, model: AdaptedModel) -> LogitHook:
        """Reads every distinct voice once."""
        return _MixHook(self, model)

    @property
    def _voices(self) -> dict[str, Voice]:
        return {name: voice for name, voice in self.voices.items() if isinstance(voice, Voice)}

    def with_weights(self, **weights: float) -> LogitMix:
        """The same with other weights; ``own`` is the running model's.

        Raises:
            UserError: There is no voice of that name.
        """
        for name in weights:
            if name not in (OWN, *self.voices):
                raise unknown_name("voice", name, (OWN, *self.voices))
        new = {name: replace(voice, weight=weights.get(name, voice.weight)) for name, voice in self._voices.items()}
        return replace(self, voices=new, own=weights.get(OWN, self.own))

    def with_models(self, **models: Any) -> LogitMix:
        """The same with the voices' models at hand, after loading a recipe file.

        Raises:
            UserError: A model has other weights than the one that was saved, or there is no such voice.
        """
        matched = self.matching(models)
        voices = {name: replace(voice, model=matched.get(name, voice.model)) for name, voice in self._voices.items()}
        return replace(self, voices=voices)

    def validate(self, model: AdaptedModel) -> None:
        """Every voice must be at hand and write the same words as ``model``."""
        super().validate(model)
        for voice in self._voices.values():
            voice.validate()

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings, with every model by name and hash."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["voices"] = {name: voice.plain() for name, voice in self._voices.items()}
        return pack(values, self.scopes)


class _MixHook(LogitHook):
    """Reads every distinct voice once."""

    def __init__(self, mix: LogitMix, model: AdaptedModel) -> None:
        super().__init__(mix.positions, model)
        self.mix, self.amount = mix, Amount(mix.strength)
        self.voices = list(mix._voices.items())
        keys = [voice.key(model) for _, voice in self.voices]
        distinct = {key: voice for key, (_, voice) in zip(keys, self.voices, strict=True) if key is not None}
        self.heard = Heard({key: VoiceReader(voice) for key, voice in distinct.items()})
        self.keys = keys

    def readers(self) -> Iterable[Reader]:
        return self.heard.readers.values()

    def read(self, kwargs: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:
        read = self.heard.logits(kwargs, ctx, cache)
        return tuple(ctx.scratch[UNSHIFTED] if key is None else read[key] for key in self.keys)

    def combined(self, own: Tensor, *others: Any) -> Tensor:
        *voices, ctx = others
        amount = self.amount(own, ctx)
        weights = [voice.weight for _, voice in self.voices]
        new = mixed(own, ctx.scratch[UNSHIFTED], voices, self.mix.own, weights, amount)
        if self.mix.plausibility > 0:
            names = [name for name, _ in self.voices]
            unshifted = ctx.scratch[UNSHIFTED]
            judge = unshifted if self.mix.judge == OWN else voices[names.index(self.mix.judge)]
            new = without(new, implausible(judge, self.mix.plausibility), amount)
        return new


def _voice(voice: Any, name: str) -> Voice:
    if isinstance(voice, Voice):
        return replace(voice, model=as_other(voice.model, name))
    if isinstance(voice, Mapping):
        known = {field.name for field in fields(Voice)}
        if odd := sorted(set(voice) - known):
            raise unknown_name("setting of a voice", odd[0], known)
        return Voice(**{**voice, "model": as_other(voice["model"], name)})
    return Voice(as_other(voice, name))
