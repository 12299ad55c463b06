"""What interventions on logits by other models share: their models are at hand, and a hook that reads them along."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from interventions.base import Intervention
from interventions.logit_hook import LogitHook
from interventions.other_models import OtherModel, as_other, check_words, tell_widths
from interventions.strength import Number, Strength, multiplied
from workbench.engine.positions import PositionSpec, Where
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_Same = TypeVar("_Same", bound="LogitIntervention")


class LogitIntervention(Intervention):
    """The running model's logits changed by what other models say of the same tokens.

    Subclasses are frozen dataclasses with the fields ``strength`` and ``positions``.
    """

    strength: Strength
    positions: PositionSpec | Where

    scopes: ClassVar[tuple[str, ...]] = ("positions",)

    @property
    @abstractmethod
    def models(self) -> Mapping[str, AdaptedModel | OtherModel]:
        """The other models by name; of a recipe file without weights, what is known of them."""

    @property
    @abstractmethod
    def silent(self) -> bool:
        """Whether the arithmetic leaves the logits as they are, whatever the strength."""

    @abstractmethod
    def hook(self, model: AdaptedModel) -> LogitHook:
        """What reads the other models and changes the logits."""

    @property
    def neutral(self) -> bool:
        """Whether this leaves the model exactly as it is."""
        return self.silent or (not isinstance(self.strength, Tensor) and self.strength == 0)

    def validate(self, model: AdaptedModel) -> None:
        """Every model must be at hand and write the same words as ``model``."""
        for name, other in self.models.items():
            if isinstance(other, OtherModel):
                raise UserError(
                    f"The recipe names its {name} model ({other.name}, {other.identity[:12]}…) but holds no weights: "
                    f"load it and give it by .with_models({', '.join(f'{model}=...' for model in self.models)})."
                )
            check_words(model, other)

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The model's logits are changed inside, in forward passes and in ``generate``."""
        if self.neutral:
            with model.active():
                yield
            return
        tell_widths(model, *self.models.values())
        with self.hook(model).on(model):
            yield

    def scaled(self: _Same, factor: Number) -> _Same:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=multiplied(self.strength, factor))  # type: ignore[type-var]

    with_models: Callable[..., Any]
    """The same with the other models at hand, after loading a recipe file."""

    def with_models_of(self: _Same, at_hand: Iterable[AdaptedModel]) -> _Same:
        """The same with the models that a recipe file names, where all are among ``at_hand`` (by the hash of their
        weights); else as it is, which says what is missing when it is applied."""
        models = self.models
        if not any(isinstance(other, OtherModel) for other in models.values()):
            return self
        here = {model.identity.hash: model for model in at_hand}
        bound = {name: here.get(OtherModel.of(other).identity, other) for name, other in models.items()}
        missing = any(isinstance(other, OtherModel) for other in bound.values())
        bound_here: _Same = self if missing else self.with_models(**bound)
        return bound_here

    def matching(self, at_hand: Mapping[str, Any]) -> dict[str, AdaptedModel | OtherModel]:
        """The models at hand for those that a recipe file names.

        Raises:
            UserError: A name is unknown, or a model has other weights than the one that was saved.
        """
        saved, models = self.models, {}
        for name, model in at_hand.items():
            if name not in saved:
                raise unknown_name("model of the recipe", name, saved)
            models[name] = as_other(model, name)
            known = OtherModel.of(saved[name])
            if OtherModel.of(models[name]).identity != known.identity:
                raise UserError(
                    f"The {name} model {models[name].name} has other weights than {known.name}, with which this was "
                    "made: give that one, or make a new intervention."
                )
        return models
