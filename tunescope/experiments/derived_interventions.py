"""Interventions that have no schema of their own in an experiment: theirs is made from the fields of the class."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, create_model

from tunescope.experiments.strict import Strict, placed, refusal, unknown
from tunescope.experiments.tensor_source import TensorSource
from workbench.errors import UserError
from workbench.method_index import Entry, index, load_method

Layer = int | float | str
Positions = str | int | list[int]
Side = Literal["base", "tuned"]
_Label = Annotated[str, BeforeValidator(str)]
"""Layers and heads as keys; JSON has only texts."""


class Inline(Strict):
    """One intervention."""

    leading_keys: ClassVar[tuple[str, ...]] = ("kind",)

    strength: float = 1.0


class GateSpec(Strict):
    """When an intervention acts: where a linear probe fires (:class:`interventions.Gate`)."""

    layer: Layer
    direction: TensorSource
    threshold: float
    site: str = "resid_post"
    fires: Literal["above", "below"] = "above"
    reach: Literal["prompt", "onward", "token"] = "prompt"


class VoiceSpec(Strict):
    """One of several models that decide the next word together (:class:`interventions.Voice`)."""

    model: Side
    weight: float = 1.0
    prefix: str = ""
    adapter_scale: float = 1.0


class DerivedInline(Inline):
    """An intervention whose keys are the fields of its class."""

    kind: str = ""
    kinds: ClassVar[Mapping[str, str]]
    """Field -> what the file writes there: "tensor", "tensors" (by label), "model" (a side of the pair), "models"
    (by name), "gate", or "plain"."""


def entries() -> dict[str, Entry]:
    """Class name -> the registered intervention, of ours and of plug-ins."""
    return {entry.function: entry for entry in index().entries if entry.kind == "intervention"}


def class_of(kind: str) -> Any:
    """The class of the intervention called ``kind``. Raises :class:`UserError` where a plug-in cannot be imported."""
    return load_method(entries()[kind].name).call


@cache
def derived_spec(kind: str) -> type[DerivedInline]:
    """The schema of intervention ``kind``; its file is imported for it.

    Raises:
        UserError: There is no such intervention, it cannot be imported, or a file cannot say one of its fields.
    """
    if kind not in entries():
        raise UserError(unknown(f"value {kind!r}", kind, [*entries(), "Recipe"]))
    cls = class_of(kind)
    hints = typing.get_type_hints(cls)
    keys: dict[str, Any] = {"kind": (Literal[kind], kind)}
    written: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        key = _key(field.name, hints[field.name])
        if key is not None:
            written[field.name], annotation = key
            keys[field.name] = (annotation, _default(field))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(
                f"A file cannot say the {field.name} of {kind}: save a recipe that holds it, name its file."
            )
    made = create_model(f"{kind}Spec", __base__=DerivedInline, __doc__=cls.__doc__, **keys)
    made.kinds = written
    return made


def derived(values: Any) -> Any:
    """An intervention from plain values."""
    if isinstance(values, DerivedInline) or not isinstance(values, Mapping):
        return values
    if "kind" not in values:
        raise refusal("is missing; it says what this is.", "kind")
    try:
        return derived_spec(str(values["kind"])).model_validate(values)
    except ValidationError as error:
        raise placed(error, values) from None
    except UserError as error:
        raise refusal(str(error), "kind") from None


AnyDerived = Annotated[
    DerivedInline, BeforeValidator(derived), PlainSerializer(lambda spec: spec.plain(), return_type=dict[str, Any])
]


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    if field.default is dataclasses.MISSING:
        return ...
    return list(field.default) if isinstance(field.default, tuple) else field.default


def _key(name: str, hint: Any) -> tuple[str, Any] | None:
    """What a field holds, and the type of its key; None where no file can say it."""
    members = [member for member in _members(hint) if member is not type(None)]
    optional = type(None) in _members(hint)
    kind, annotation = _kind(name, members)
    return None if annotation is None else (kind, annotation | None if optional else annotation)


def _kind(name: str, members: Sequence[Any]) -> tuple[str, Any]:
    names = {_name(member) for member in members}
    if name in ("layer", "layers") and names <= {"int", "float", "str"}:
        return "plain", Layer
    if "Where" in names:
        return "plain", Positions
    if members == [Any] and name in ("tuned", "base", "model", "reference"):
        return "model", Side
    if "Gate" in names:
        return "gate", GateSpec
    mappings = [member for member in members if get_origin(member) in (dict, Mapping)]
    if mappings:
        return _of_mapping(mappings[0], [member for member in members if member not in mappings])
    if "Tensor" in names:
        numbers = names - {"Tensor"}
        return ("plain", float) if numbers & {"float", "int"} else ("tensor", TensorSource)
    literals = [member for member in members if get_origin(member) is Literal]
    plain = [member for member in members if member in (bool, int, float, str)]
    lists = [member for member in members if get_origin(member) in (list, tuple, Sequence)]
    if literals and len(literals) + len(plain) == len(members):
        return "plain", _union([*literals, *plain])
    if set(plain) == {int, float} == set(members):
        return "plain", float
    if plain and len(plain) == len(members):
        return "plain", _union(plain)
    if lists and len(lists) + len(plain) == len(members):
        items = {item for hint in lists for item in _members(get_args(hint)[0]) if item in (int, float, str)}
        listed: Any = list
        return "plain", listed[_union(sorted(items, key=str))] if items else None
    return "", None


def _of_mapping(mapping: Any, others: Sequence[Any]) -> tuple[str, Any]:
    """Label -> number or tensor, or one number for all."""
    _, value = get_args(mapping)
    if value is Any:
        return "models", dict[_Label, Side | VoiceSpec]
    names = {_name(member) for member in _members(value)}
    if names & {"float", "int"}:
        return "plain", dict[_Label, float] | float if others else dict[_Label, float]
    if "Tensor" in names:
        return "tensors", dict[_Label, TensorSource]
    return "", None


def _union(members: Sequence[Any]) -> Any:
    return reduce(or_, members)


def _members(hint: Any) -> list[Any]:
    """The types of a union, aliases of unions opened."""
    if get_origin(hint) in (Union, types.UnionType):
        return [part for member in get_args(hint) for part in _members(member)]
    return [hint]


def _name(member: Any) -> str:
    return getattr(member, "__name__", str(member))
