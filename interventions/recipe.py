"""Recipes: interventions in order, applied together, kept in one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from interventions import recipe_file
from interventions.base import Intervention, SiteIntervention
from interventions.checks import as_prompt_lengths
from interventions.strength import Number
from interventions.trace import Trace
from workbench.cards import card, counted
from workbench.engine.hub import SiteHook
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Recipe:
    """Interventions that act in this order. Recipes are values: ``a + b``, ``a * 0.5``, ``a == b`` by content.

    ``made_with`` tells where the recipe comes from; it does not count for equality.
    """

    interventions: Sequence[Intervention] = ()
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        interventions = [self.interventions] if isinstance(self.interventions, Intervention) else self.interventions
        for intervention in interventions:
            if not isinstance(intervention, Intervention):
                raise UserError(
                    f"A recipe holds interventions, not {type(intervention).__name__}: Recipe([Offset(...)])."
                )
        object.__setattr__(self, "interventions", tuple(interventions))
        object.__setattr__(self, "made_with", dict(self.made_with))

    @contextmanager
    def applied(
        self, model: Any, *, trace: bool = False, prompt_lengths: int | Sequence[int] | Tensor | None = None
    ) -> Iterator[Trace]:
        """Let ``model`` (an AdaptedModel or a Hugging Face model) compute with this recipe inside the context.

        Everything is checked before the model is touched, and everything comes back on leaving, also after an
        exception, in another thread or by garbage collection. Contexts nest: the inner recipe acts after the outer one
        at the same site. Whoever is outside the context (another thread, task or streaming generator) is refused with
        :class:`workbench.errors.ModelBusy`.

        Args:
            model: An AdaptedModel or a Hugging Face model.
            trace: Let the yielded :class:`Trace` tell what fired where.
            prompt_lengths: Real tokens of each prompt [row], or one number for all. Needed for positions that count
                from the prompt's end in a decoding loop of your own; ``generate`` knows.

        Yields:
            The trace; empty without ``trace``.

        Raises:
            UserError: The recipe does not fit the model, or forward passes ran inside and did not call its hooks.
        """
        adapted = as_adapted(model)
        self.check(adapted)
        lengths, log = as_prompt_lengths(prompt_lengths), Trace()
        with ExitStack() as stack:
            if lengths is not None:
                stack.enter_context(adapted.hooked([], prompt_lengths=lengths))
            for place, step in self._steps(adapted, log if trace else None):
                with log.watching(place, step.kind) if trace and isinstance(step, Intervention) else nullcontext():
                    stack.enter_context(adapted.hooked(step) if isinstance(step, list) else step.entered(adapted))
            yield log

    def _steps(self, model: AdaptedModel, log: Trace | None) -> list[tuple[int, Intervention | list[SiteHook]]]:
        """What to enter, in order, with its number: the hooks of neighbouring interventions at sites go on together."""
        steps: list[tuple[int, Intervention | list[SiteHook]]] = []
        for place, intervention in enumerate(self.interventions):
            if not isinstance(intervention, SiteIntervention):
                steps.append((place, intervention))
            elif hooks := intervention.hooks(model):
                hooks = hooks if log is None else [log.watched(hook, place, intervention.kind) for hook in hooks]
                before = steps[-1][1] if steps else None
                if isinstance(before, list):
                    before += hooks
                else:
                    steps.append((place, hooks))
        return steps

    def check(self, model: Any) -> None:
        """Raise :class:`UserError` when this recipe does not fit ``model`` or contradicts itself."""
        from interventions.conflicts import check_conflicts

        adapted = as_adapted(model)
        recipe_file.check_made_for(self.made_with, adapted)
        for place, intervention in enumerate(self.interventions):
            try:
                intervention.validate(adapted)
                if isinstance(intervention, SiteIntervention):
                    intervention.check_gate(adapted)
            except UserError as error:
                raise type(error)(f"{intervention.kind} (number {place} of the recipe): {error}") from None
        check_conflicts(self.interventions, adapted)

    def row_hooks(self, model: AdaptedModel) -> list[SiteHook]:
        """The hooks of one row by itself, for an engine that runs rows of many recipes together, such as vLLM.

        Raises:
            NotSupported: An intervention acts at no site, and so on all rows at once.
        """
        for step in self.interventions:
            if not isinstance(step, SiteIntervention):
                raise NotSupported(
                    f"vLLM cannot hold {step.kind}, which acts at no site: bake it into the weights with  tunescope "
                    "recipe export --to model  where it can be, or use our own engine."
                )
        return site_hooks(self, model)

    def save(self, path: str | Path, *, model: AdaptedModel | None = None) -> Path:
        """Write the recipe as one safetensors file, whole or not at all; ``model``: the one it was made on."""
        return recipe_file.write(self.interventions, self.made_with, Path(path), model)

    @classmethod
    def load(cls, path: str | Path, model: Any = None, *, strict: bool = False) -> Recipe:
        """Read a recipe file; with ``model``, refuse one that does not fit it.

        A file made on other weights of the same shape is a warning, or with ``strict`` an error. Raises
        :class:`UserError` for a pickle, a truncated or foreign file, and a newer version.
        """
        recipe = cls(*recipe_file.read(Path(path)))
        if model is not None:
            adapted = as_adapted(model)
            recipe.check(adapted)
            recipe_file.check_identity(recipe.made_with, adapted, strict)
        return recipe

    @property
    def content(self) -> str:
        """Sha256 in hex of the interventions in order."""
        return sha256(" ".join(intervention.content for intervention in self.interventions).encode()).hexdigest()

    def __mul__(self, factor: Number) -> Recipe:
        return Recipe([intervention.scaled(factor) for intervention in self.interventions], self.made_with)

    __rmul__ = __mul__

    def __add__(self, other: Recipe | Intervention) -> Recipe:
        more = other if isinstance(other, Recipe) else Recipe([other])
        made_with = {**more.made_with, **self.made_with}
        return Recipe([*self.interventions, *more.interventions], made_with)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)

    def with_models_of(self, at_hand: Iterable[AdaptedModel]) -> Recipe:
        """The same where interventions that read other models (shifts of logits) have those that are among
        ``at_hand``: a recipe file holds such models by name and hash alone.

        Example:
            ``iv.Recipe.load("shift.safetensors").with_models_of(pair.models.values())``
        """
        models = list(at_hand)
        bound = [
            part.with_models_of(models) if hasattr(part, "with_models_of") else part for part in self.interventions
        ]
        return Recipe(bound, self.made_with)

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.interventions)

    def __len__(self) -> int:
        return len(self.interventions)

    def __getitem__(self, place: int) -> Intervention:
        return self.interventions[place]

    def __repr__(self) -> str:
        if not self.interventions:
            return "Recipe([])"
        return "Recipe([\n" + "".join(f"    {intervention!r},\n" for intervention in self.interventions) + "])"

    def _repr_html_(self) -> str:
        import pandas as pd

        lines = [
            {"": place, "intervention": intervention.kind, "settings": repr(intervention)}
            for place, intervention in enumerate(self)
        ]
        made = {str(name): value for name, value in self.made_with.items()}
        return card(f"Recipe of {counted(len(self), 'intervention')}", made, pd.DataFrame(lines))


def as_adapted(model: Any) -> AdaptedModel:
    """``model`` itself, or a Hugging Face model with names for its parts."""
    if isinstance(model, AdaptedModel):
        return model
    if hasattr(model, "base") and hasattr(model, "tuned"):
        raise UserError("A recipe is applied to one side of a pair: give pair.base or pair.tuned.")
    return AdaptedModel(model, None)


def site_hooks(recipe: Recipe | None, model: AdaptedModel) -> list[SiteHook]:
    """The hooks of a recipe that acts at sites alone, in its order. What a gate has seen lives as long as they do."""
    steps = () if recipe is None else recipe.interventions
    return [hook for step in steps if isinstance(step, SiteIntervention) for hook in step.hooks(model)]


def per_row(recipes: Iterable[Recipe | Intervention | None]) -> Recipe:
    """One recipe that gives every prompt of a batch its own: entry i acts on row i alone, None leaves it alone.

    Rows with equal recipes share one application. Raises :class:`NotSupported` for
    interventions on weights and logits, which rows cannot tell apart.
    """
    by_row = [Recipe([recipe]) if isinstance(recipe, Intervention) else recipe for recipe in recipes]
    limited: list[Intervention] = []
    for recipe in dict.fromkeys(entry for entry in by_row if entry is not None):
        rows = tuple(other == recipe for other in by_row)
        for intervention in recipe:
            if not isinstance(intervention, SiteIntervention):
                raise NotSupported(
                    f"{intervention.kind} acts at no site, so all rows of a batch share it: apply it by itself."
                )
            limited.append(intervention.limited_to(rows))
    return Recipe(limited)
