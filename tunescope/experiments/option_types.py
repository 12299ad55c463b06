"""How each kind of option is written: its type in an experiment file, and its value from a command line's text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from tunescope.experiments.derived_interventions import Layer, Positions
from tunescope.experiments.head_groups import heads_by_place, parts, place
from tunescope.experiments.inline import Labels
from tunescope.experiments.inputs import Scalar
from tunescope.experiments.key_kinds import FILE, PROMPTS, RECIPE
from tunescope.experiments.strict import MOST, MOST_DRAWS, refusal
from workbench.errors import UserError
from workbench.method_options import Option, OptionKind


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _texts(value: Any) -> Any:
    return parts(value) if isinstance(value, str) else value


def _scored(text: Any) -> Any:
    if isinstance(text, str) and ":" in text and not text.partition(":")[2].strip():
        raise refusal("is empty; give the text behind the colon, as in begins:sorry.")
    return text


def _named_sets(value: Any) -> Any:
    """A list names desiderata as their sets are called."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise refusal("names a set twice; every desideratum needs its own.")
        return {name: name for name in value}
    return value


Needles = list[dict[Literal["question", "text"], str]]
_TYPES: dict[OptionKind, Any] = {
    "text": str,
    "value": Scalar,
    "flag": bool,
    "texts": Annotated[list[str], BeforeValidator(_texts)],
    "numbers": Annotated[list[float], BeforeValidator(_listed)],
    "layers": list[Layer] | Layer,
    "positions": Positions,
    "place": int | float | str,
    "prompts": Annotated[str, PROMPTS],
    "prompt sets": Annotated[dict[str, Annotated[str, PROMPTS]], BeforeValidator(_named_sets)],
    "column": str,
    "spans": str,
    "experts": Labels,
    "heads by place": dict[str | int, list[str]] | list[str],
    "behaviour": Annotated[str, BeforeValidator(_scored), StringConstraints(min_length=1, strip_whitespace=True)],
    "file": Annotated[str, FILE],
    "needles": Needles | Annotated[str, FILE],
    "recipe": Annotated[str, RECIPE],
    "recipes": Annotated[list[Annotated[str, RECIPE]], BeforeValidator(_texts)],
    "controls": Annotated[int, Field(ge=0, le=MOST_DRAWS)],
    "lora": Annotated[int, Field(ge=1, le=MOST)],
}


def annotation_of(option: Option) -> Any:
    """The pydantic type of an option's key."""
    kind: Any = Literal[option.choices] if option.kind == "choice" else _limited(option)
    return kind | None if option.optional else kind


def _limited(option: Option) -> Any:
    """The type with the option's range; a list holds at least one value."""
    most = None if option.kind == "number" else MOST_DRAWS if option.name == "controls" else MOST
    limits = Field(ge=option.minimum, le=most if option.maximum is None else option.maximum)
    match option.kind:
        case "integer":
            return Annotated[int, limits]
        case "number":
            return Annotated[float, limits]
        case "integers":
            return Annotated[list[Annotated[int, limits]], BeforeValidator(_listed), Field(min_length=1)]
        case "numbers" | "texts" | "prompt sets":
            return Annotated[_TYPES[option.kind], Field(min_length=1)]
    return _TYPES[option.kind]


def value_of(option: Option, text: str) -> Any:
    """What ``text`` on a command line means for ``option``, as an experiment file holds it.

    Raises:
        ValueError: The text is none of what the option takes; says so.
    """
    try:
        return _FROM_TEXT.get(option.kind, str)(text)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        what = {"integer": "whole number", "number": "number", "integers": "list of whole numbers, such as 256,512"}
        if option.kind == "heads by place":
            raise
        raise ValueError(f"{text!r} is no {what.get(option.kind, option.kind)}.") from None


def _number(text: str) -> int | float:
    return float(text) if any(sign in text for sign in ".eE") else int(text)


def _scalar(text: str) -> Scalar:
    try:
        return _number(text)
    except ValueError:
        return text


def _layers(text: str) -> Any:
    return text if text in ("search", "all") else [_scalar(part) for part in parts(text)]


def _experts(text: str) -> Any:
    """``L1E4,L1E2``, or ``result.safetensors:3``: the first three of a map that a run keeps."""
    file, _, first = text.rpartition(":")
    if first.isdigit() and file:
        return {"file": file, "first": int(first)}
    return {"file": text} if text.endswith(".safetensors") else parts(text)


def _needles(text: str) -> list[dict[str, str]]:
    """The rows of a file of needles, so that a run holds them itself."""
    from pathlib import Path

    from probes.needles.search import read_needles

    return [{"question": needle.question, "text": needle.text} for needle in read_needles(Path(text))]


def _sets(text: str) -> Mapping[str, str]:
    from pathlib import Path

    named = [part.rpartition("=") for part in parts(text)]
    return {name or Path(file).stem: file for name, _, file in named}


_FROM_TEXT: dict[OptionKind, Callable[[str], Any]] = {
    "integer": int,
    "controls": int,
    "lora": int,
    "recipes": parts,
    "number": _number,
    "value": _scalar,
    "texts": parts,
    "integers": lambda text: [int(part) for part in text.split(",")],
    "numbers": lambda text: [_number(part) for part in parts(text)],
    "layers": _layers,
    "positions": place,
    "place": _scalar,
    "experts": _experts,
    "heads by place": heads_by_place,
    "prompt sets": _sets,
    "needles": _needles,
}
