"""What the value of a key names: a set of prompts, a recipe, an earlier step or a file, said once at its type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Names:
    """The mark of a type whose text is a name of something else."""

    what: str


PROMPTS, RECIPE, STEP, FILE = Names("prompts"), Names("recipes"), Names("steps"), Names("file")
PromptsName = Annotated[str, PROMPTS]
RecipeName = Annotated[str, RECIPE]
StepName = Annotated[str, STEP]


def kind_of_key(field: FieldInfo) -> str | None:
    """What the texts in a field name; None for a plain value."""
    return next(_marks((field.annotation, *field.metadata)), None)


def keys_naming(model: type[BaseModel], what: str) -> list[str]:
    """The keys of a schema whose values name ``what``."""
    return [name for name, field in model.model_fields.items() if kind_of_key(field) == what]


def named(model: BaseModel, what: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every name of ``what`` in a model's own keys: where it stands, and which."""
    for key in keys_naming(type(model), what):
        yield from _texts(getattr(model, key), (key,))


def _texts(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, (*path, key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            if isinstance(part, str):
                yield (*path, number), part


def _marks(hints: tuple[Any, ...]) -> Iterator[str]:
    for hint in hints:
        if isinstance(hint, Names):
            yield hint.what
        elif get_origin(hint) is not None:
            yield from _marks(get_args(hint))
