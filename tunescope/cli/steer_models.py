"""The other models that a recipe's logit shifts name, found among those given on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError

if TYPE_CHECKING:
    from interventions.logit_shift import LogitShift
    from interventions.recipe import Recipe
    from workbench.models.adapted import AdaptedModel

ROLES = ("tuned", "base")


def with_other_models(
    recipe: Recipe, sides: Mapping[str, AdaptedModel], names: Mapping[str, str | None], **options: Any
) -> Recipe:
    """``recipe`` with the two models of every ``LogitShift`` at hand; any other recipe as it is.

    A recipe file holds these models by name and hash. They are the ``sides`` being steered where these have that hash,
    else those that ``names`` has for the roles "tuned" and "base" (folders, hub ids; an adapter with its base), loaded
    with ``options``. Raises :class:`UserError` for one that is missing, that has other weights than the recipe
    was made with, or that no shift asks for.
    """
    from interventions.logit_shift import LogitShift
    from interventions.recipe import Recipe

    named_here = {role: name for role in ROLES if (name := names.get(role)) is not None}
    shifts = [intervention for intervention in recipe if isinstance(intervention, LogitShift)]
    if named_here and not shifts:
        named = " and ".join(f"--shift-{role}" for role in named_here)
        raise UserError(f"This recipe shifts no logits by other models: leave {named} out.")
    if not shifts:
        return recipe
    here = {side.identity.hash: side for side in sides.values()}
    for shift in shifts:
        _all_named(shift, here, named_here)  # before anything is loaded
    loaded = _loaded(named_here, options)
    made = [
        _bound(intervention, here, loaded) if isinstance(intervention, LogitShift) else intervention
        for intervention in recipe
    ]
    return Recipe(made, recipe.made_with)


def _all_named(shift: LogitShift, here: Mapping[str, AdaptedModel], named_here: Mapping[str, str]) -> None:
    from interventions.other_models import OtherModel

    for role in ROLES:
        wanted = OtherModel.of(getattr(shift, role))
        if wanted.identity not in here and role not in named_here:
            raise UserError(
                f"The recipe shifts logits by a {role} model, {wanted.name}, which is none of those that are steered: "
                f"give it with --shift-{role}."
            )


def _bound(shift: LogitShift, here: Mapping[str, AdaptedModel], loaded: Mapping[str, AdaptedModel]) -> LogitShift:
    from interventions.other_models import OtherModel

    models = {}
    for role in ROLES:
        wanted = OtherModel.of(getattr(shift, role)).identity
        models[role] = here[wanted] if wanted in here and role not in loaded else loaded[role]
    return shift.with_models(**models)


def _loaded(named_here: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, AdaptedModel]:
    from workbench.models.pair import load_one, load_pair

    if len(named_here) == len(ROLES):
        return dict(load_pair(named_here["base"], named_here["tuned"], **options).models)
    return {role: load_one(name, **options) for role, name in named_here.items()}
