"""Logits moved by the difference of two other models: proxy tuning, emulated fine-tuning, dynamic logits fusion."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from interventions.logit_arithmetic import beyond, implausible, matched_amount, shifted, without
from interventions.logit_hook import UNSHIFTED, LogitHook
from interventions.logit_intervention import LogitIntervention
from interventions.other_models import OtherModel, Reader, as_other
from interventions.packing import pack
from interventions.strength import Amount, Strength, as_strength
from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Where, where
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

MATCHED = "matched"


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
class LogitShift(LogitIntervention):
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
    def models(self) -> dict[str, AdaptedModel | OtherModel]:
        """The two whose difference is added."""
        return {"tuned": self.tuned, "base": self.base}

    @property
    def silent(self) -> bool:
        """Whether nothing is added."""
        return self.alpha == 0

    def hook(self, model: AdaptedModel) -> ShiftHook:
        """Reads both models along."""
        return ShiftHook(self, model)

    def with_models(self, tuned: Any, base: Any) -> LogitShift:
        """The same with the two models at hand, after loading a recipe file.

        Raises:
            UserError: One has other weights than the model that was saved.
        """
        models = self.matching({"tuned": tuned, "base": base})
        return replace(self, tuned=models["tuned"], base=models["base"])

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings, with the two models by name and hash."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
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
        self._readers = [self._reader(shift_model, model) for shift_model in (shift.tuned, shift.base)]

    def _reader(self, other: AdaptedModel, model: AdaptedModel) -> Reader | None:
        """None for the running model itself, whose logits are there already."""
        return None if other.inner is model.inner and other.role == model.role else Reader(other)

    def readers(self) -> list[Reader]:
        return [reader for reader in self._readers if reader is not None]

    def read(self, kwargs: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:
        unshifted = ctx.scratch[UNSHIFTED]
        return tuple(unshifted if reader is None else reader.logits(kwargs, ctx, cache) for reader in self._readers)

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
