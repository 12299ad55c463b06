"""Logits moved by the difference of two other models: proxy tuning, emulated fine-tuning, dynamic logits fusion."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from interventions.base import Intervention
from interventions.logit_arithmetic import beyond, implausible, matched_amount, shifted, without
from interventions.logit_hook import UNSHIFTED, LogitHook
from interventions.other_models import OtherModel, Reader
from interventions.packing import pack
from interventions.strength import Amount, Number, Strength, as_strength, multiplied
from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Where, where
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

MATCHED = "matched"


class VocabularyWarning(UserWarning):
    """The models' logits have different widths, so the last columns are left as they are."""


@method(
    "logit-shift",
    group="decoding",
    question="What if the next-word distribution is shifted by what tuning did to another model?",
    kind="intervention",
    papers=(
        "Tuning Language Models by Proxy",
        "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
        "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion",
    ),
)
@dataclass(frozen=True, eq=False, repr=False)
class LogitShift(Intervention):
    """logits + alpha * (logits of ``tuned`` - logits of ``base``), which steers a large model by a small pair.

    Proxy tuning (Liu et al. 2024); after the softmax the same as emulated fine-tuning (Mitchell et al. 2024), whose
    filter is ``top_p``: only words within that share of the running model's probability can be written (which removes
    what tuning alone made likely). ``plausibility`` is the cut by the tuned model instead (CGE): only words with at
    least that share of its likeliest word's probability can be written. ``alpha="matched"`` chooses alpha for every
    token, as Dynamic Logits Fusion (Fan et al. 2024) does. Both models read the same tokens and keep their own caches,
    through sampling, beams and padding; each token costs a forward pass of each. Several shifts, in one recipe or in
    nested ones, read the models as they are without any shift, so they add up and a shift and its inverse cancel.
    ``strength`` multiplies alpha (one number, or one per row); ``positions`` are those whose next word is changed. A
    recipe file holds the two models by name and hash only: after loading, give them by :meth:`with_models`.
    """

    tuned: Any
    base: Any
    alpha: float | str = 1.0
    top_p: float = 1.0
    plausibility: float = field(default=0.0, kw_only=True)
    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)

    scopes: ClassVar[tuple[str, ...]] = ("positions",)

    def __post_init__(self) -> None:
        where(self.positions)
        for name in ("tuned", "base"):
            object.__setattr__(self, name, as_other(getattr(self, name), name))
        object.__setattr__(self, "strength", as_strength(self.strength))
        if isinstance(self.alpha, str) and self.alpha != MATCHED:
            raise UserError(f"alpha is {self.alpha!r}: give a number, or 'matched' to have it chosen for every token.")
        if not isinstance(self.alpha, str):
            factor = as_strength(self.alpha)
            if not isinstance(factor, float):
                raise UserError("alpha is one number for all rows: give rows their own by strength=[...].")
            object.__setattr__(self, "alpha", factor)
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: give a share above 0, up to 1 (no filter).")
        if not 0 <= self.plausibility <= 1:
            raise UserError(f"plausibility is {self.plausibility}: give a share from 0 (no filter) to 1.")

    @property
    def neutral(self) -> bool:
        """Whether this leaves the model exactly as it is."""
        return (not isinstance(self.strength, Tensor) and self.strength == 0) or self.alpha == 0

    def with_models(self, tuned: Any, base: Any) -> LogitShift:
        """The same with the two models at hand, after loading a recipe file.

        Raises :class:`UserError` when one has other weights than the model that was saved.
        """
        for name, given in (("tuned", as_other(tuned, "tuned")), ("base", as_other(base, "base"))):
            saved = OtherModel.of(getattr(self, name))
            if OtherModel.of(given).identity != saved.identity:
                raise UserError(
                    f"The {name} model {given.name} has other weights than {saved.name}, with which this was made: "
                    "give that one, or make a new LogitShift."
                )
        return replace(self, tuned=tuned, base=base)

    def validate(self, model: AdaptedModel) -> None:
        """Both models must be at hand and write the same words as ``model``."""
        for name in ("tuned", "base"):
            other = getattr(self, name)
            if isinstance(other, OtherModel):
                raise UserError(
                    f"The recipe names its {name} model ({other.name}, {other.identity[:12]}…) but holds no weights: "
                    "load both and apply shift.with_models(tuned=..., base=...)."
                )
            check_words(model, other)

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The model's logits are shifted inside, in forward passes and in ``generate``."""
        if self.neutral:
            with model.active():
                yield
            return
        tell_widths(model, self.tuned, self.base)
        with ShiftHook(self, model).on(model):
            yield

    def scaled(self, factor: Number) -> LogitShift:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=multiplied(self.strength, factor))

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings, with the two models by name and hash."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("tuned", "base"):
            values[name] = vars(OtherModel.of(values[name]))
        if not self.plausibility:  # the content of a shift without it stays what it was before there was one
            del values["plausibility"]
        return pack(values, self.scopes)


class ShiftHook(LogitHook):
    """Reads both models along."""

    def __init__(self, shift: LogitShift, model: AdaptedModel) -> None:
        super().__init__(shift.positions, model)
        self.shift, self.amount = shift, Amount(shift.strength)
        self.readers = [self._reader(one, model) for one in (shift.tuned, shift.base)]

    def _reader(self, other: AdaptedModel, model: AdaptedModel) -> Reader | None:
        """None for the running model itself, whose logits are there already."""
        return None if other.inner is model.inner and other.role == model.role else Reader(other)

    def read(self, given: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:
        unshifted = ctx.scratch[UNSHIFTED]
        return tuple(unshifted if one is None else one.logits(given, ctx, cache) for one in self.readers)

    def combined(self, own: Tensor, tuned: Tensor, base: Tensor, ctx: ForwardContext) -> Tensor:
        unshifted = ctx.scratch[UNSHIFTED]
        alpha = self.shift.alpha
        scale = matched_amount(unshifted, tuned, base)[..., None] if isinstance(alpha, str) else alpha
        amount = scale * self.amount(own, ctx)
        new = shifted(own, tuned, base, amount)
        if self.shift.top_p < 1:
            new = without(new, beyond(unshifted, self.shift.top_p), amount)
        if self.shift.plausibility > 0:
            new = without(new, implausible(tuned, self.shift.plausibility), amount)
        return new


def as_other(given: Any, name: str) -> AdaptedModel | OtherModel:
    if isinstance(given, AdaptedModel | OtherModel):
        return given
    if isinstance(given, Mapping):
        if set(given) != {"name", "identity"}:
            raise UserError(f"The recipe says of its {name} model {sorted(given)}, not name and identity.")
        return OtherModel(str(given["name"]), str(given["identity"]))
    if hasattr(given, "base") and hasattr(given, "tuned"):
        raise UserError(f"{name} is a pair of models: give one of them, pair.base or pair.tuned.")
    if not hasattr(given, "generate"):
        raise UserError(f"{name} is {type(given).__name__}: give a model (pair.tuned, or a Hugging Face model).")
    return AdaptedModel(given, None)


def check_words(model: AdaptedModel, other: AdaptedModel) -> None:
    """The same id must be the same word in both, as far as both have it."""
    if model.tokenizer is None or other.tokenizer is None or model.tokenizer is other.tokenizer:
        return
    ours, theirs = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    size = min(len(ours), len(theirs))
    odd = [word for word, token in ours.items() if token < size and theirs.get(word) != token]
    if odd:
        raise UserError(
            f"{model.name} and {other.name} do not write the same words (token {ours[odd[0]]} is {odd[0]!r} in one "
            "alone), so their logits cannot be added: use models of one vocabulary."
        )


def tell_widths(*models: AdaptedModel) -> None:
    sizes = [one.vocab_size for one in models]
    if len(set(sizes)) > 1:
        warnings.warn(
            f"The models' logits have {', '.join(map(str, sizes))} columns: those beyond the first {min(sizes)} are "
            "left as they are.",
            VocabularyWarning,
            stacklevel=4,
        )
