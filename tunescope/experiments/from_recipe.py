"""A recipe as plain YAML: how the dashboard, or a script, puts what it has into an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from interventions.gate import Gate
from tunescope.experiments.derived_interventions import class_of
from tunescope.experiments.inline import WRITTEN, RecipeSpec, spec_of
from workbench.engine.positions import Where
from workbench.errors import NotSupported, UserError
from workbench.typing import Tensor

if TYPE_CHECKING:
    from interventions import Recipe

LONGEST = 4096
"""Numbers that a YAML file may hold of one recipe; more belong into a saved recipe."""


def recipe_spec(recipe: Recipe) -> RecipeSpec:
    """``recipe`` written out. Raises :class:`NotSupported` for what YAML should not hold: save it and give its file.

    Reading it back gives an equal recipe, tensors bit for bit.
    """
    count = sum(tensor.numel() for intervention in recipe for tensor in intervention.to_tensors()[1].values())
    if count > LONGEST:
        raise NotSupported(
            f"This recipe holds {count} numbers, too many to write out: save it with Recipe.save and name the file."
        )
    return RecipeSpec(interventions=[_written(intervention) for intervention in recipe])


def _written(intervention: Any) -> Any:
    kind = type(intervention).__name__
    refused = NotSupported(f"{kind} cannot be written out as it is: save the recipe and name the file.")
    try:
        spec = spec_of(kind)
    except UserError as error:
        raise refused from error
    if kind not in WRITTEN and class_of(kind) is not type(intervention):
        raise refused
    defaults = {field.name: field.default for field in fields(intervention)}
    held = {name: getattr(intervention, name) for name in defaults}
    values = {name: _plain(value, kind) for name, value in held.items() if value is not None}
    values = {name: value for name, value in values.items() if value not in ({}, [])}
    if any(name not in spec.model_fields and value != defaults[name] for name, value in values.items()):
        raise refused
    return spec(**{name: value for name, value in values.items() if name in spec.model_fields})


def _plain(value: Any, kind: str) -> Any:
    """Tensors as lists of numbers, positions as they are written."""
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, Gate):
        settings = {field.name: _plain(getattr(value, field.name), kind) for field in fields(value)}
        defaults = {field.name: field.default for field in fields(value)}
        return {name: setting for name, setting in settings.items() if setting != defaults[name]}
    if isinstance(value, Where):
        if (value.tokens, value.exclude, value.rows) != (None, None, None):
            raise NotSupported(f"{kind} is limited to tokens or rows, which the file cannot say: save the recipe.")
        return _plain(value.at, kind)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, kind) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, kind) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise NotSupported(f"{kind} holds {type(value).__name__}, which the file cannot say: save the recipe.")
