"""The options of a method, read from its signature, its settings dataclass and its docstring."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

OptionKind = Literal[
    "text", "integer", "number", "flag", "choice", "value", "texts", "integers", "numbers", "layers", "positions",
    "place", "prompts", "prompt sets", "column", "spans", "experts", "heads by place", "behaviour", "file", "needles",
    "recipe", "recipes", "controls", "lora", "python",
]  # fmt: skip
"""How a value is written outside Python; ``python``: only there."""

_SHARED = {
    "layers": "Layers: indices or fractions of depth.",
    "layer": "One layer: an index, or a fraction of the depth.",
    "positions": "Which tokens: last, all, content, prompt, a number, ...",
    "sites": "Sites, as resid_post or z.",
    "batch_size": "Prompts per forward pass.",
    "max_tokens": "Tokens that run together as copies of a batch; by default what suits the device.",
    "max_new_tokens": "Tokens that are generated at most.",
    "draws": "Resamples of the intervals, or random draws of the control.",
    "controls": "Random stand-ins of the control, for each recipe.",
    "on": "The model that recipes are applied to: base or tuned.",
    "end": "The model also learns to stop after an answer.",
    "temperature": "Temperature of sampled texts.",
    "top_p": "Sampled texts take the most likely tokens up to this probability.",
    "top_k": "Sampled texts take so many of the most likely tokens; 0: all.",
    "warmup_steps": "Steps until the learning rate is reached.",
    "heads": "Heads, as L3H5.",
    "metric": "What is measured.",
    "limit": "A seeded sample of at most so many prompts.",
    "epochs": "Passes over the training prompts.",
    "learning_rate": "Step size of the optimiser.",
    "lr": "Step size of the optimiser.",
    "k": "How many leading values or directions are kept.",
    "ridge": "Strength of the L2 penalty.",
}
"""Help of options that mean the same in every method."""
_BY_NAME: dict[str, OptionKind] = {"layers": "layers", "layer": "place", "positions": "positions", "position": "place"}


@dataclass(frozen=True)
class Option:
    """One option of a method."""

    name: str
    kind: OptionKind
    default: Any
    help: str = ""
    choices: tuple[str, ...] = ()
    required: bool = False
    parameter: str = ""
    """The parameter of settings that it is a field of; empty for an option of the function itself."""
    field: str = ""
    """Its name there."""
    optional: bool = False
    """Whether None is a value."""
    minimum: int | float | None = None
    maximum: int | float | None = None


@dataclass(frozen=True)
class As:
    """Marks a parameter's kind where its type does not say it: ``Annotated[Any, As("heads by place")]``."""

    kind: OptionKind


@dataclass(frozen=True)
class Within:
    """Marks the range of a number: ``Annotated[float, Within(0, 1)]``."""

    minimum: int | float | None = None
    maximum: int | float | None = None


_FROM_NOTHING = ("draws", "controls", "together", "parts", "components", "decoys", "head", "resamples", "top")
"""Counts that may be 0; all others are at least 1."""


def options_of(call: Callable[..., Any], *, expands: Mapping[str, Any] | None = None) -> list[Option]:
    """Every parameter of ``call`` as an option: own ones, those of its ``**options`` dataclass, and expanded ones."""
    hints, documented = _hints(call), documented_arguments(call)
    options: list[Option] = []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            settings, own = settings_class(call), [option.name for option in options]
            options += [] if settings is None else [field for field in _fields(settings) if field.name not in own]
        elif parameter.name in (expands or {}):
            options += _fields(
                (expands or {})[parameter.name], parameter.name, taken=[option.name for option in options]
            )
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            required = parameter.default is parameter.empty
            hint = hints.get(parameter.name, Any)
            help_ = documented.get(parameter.name, "")
            options.append(_option(parameter.name, hint, None if required else parameter.default, required, help_))
    return options


def settings_class(call: Callable[..., Any]) -> type | None:
    """The dataclass that ``call`` reads its ``**options`` into (``read_options(Settings, options)``)."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(call)))
    match = re.search(r"read_options\((\w+),", source)
    named = None if match is None else getattr(inspect.unwrap(call), "__globals__", {}).get(match.group(1))
    return named if isinstance(named, type) else None


def summary_of(call: Callable[..., Any]) -> str:
    """The first paragraph of the docstring on one line."""
    return " ".join((inspect.getdoc(call) or "").split("\n\n")[0].split())


@cache
def documented_arguments(call: Callable[..., Any]) -> dict[str, str]:
    """Argument -> its text in the ``Args:`` section of the docstring, on one line."""
    text = inspect.getdoc(call) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.split(r"\n(?=    \w)", "\n" + section.group(1).rstrip())
    pairs = (entry.strip("\n").partition(":") for entry in entries if ":" in entry)
    return {name.strip(): " ".join(help_.split()) for name, _, help_ in pairs}


@cache
def documented_fields(settings: type) -> dict[str, str]:
    """Field -> the docstring that stands under it in the source of a dataclass."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    except (OSError, TypeError):
        return {}
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                texts[statement.target.id] = " ".join(text.split())
    return texts


def kind_of(hint: Any, name: str = "") -> tuple[OptionKind, tuple[str, ...]]:
    """The kind of a type hint, and its choices."""
    if get_origin(hint) is Annotated:
        marker = next((mark for mark in get_args(hint)[1:] if isinstance(mark, As)), None)
        return (marker.kind, ()) if marker is not None else kind_of(get_args(hint)[0], name)
    members = _members(hint)
    literals = [member for member in members if get_origin(member) is Literal]
    if literals and all(member in literals or member is str for member in members):
        return "choice", tuple(str(value) for member in literals for value in get_args(member) if value is not None)
    if name in _BY_NAME:
        return _BY_NAME[name], ()
    return _kind_of_members(members), ()


def _kind_of_members(members: Sequence[Any]) -> OptionKind:
    names = {getattr(member, "__name__", str(member)) for member in members}
    if "Prompts" in names:
        return "prompts"
    plain = {str: "text", bool: "flag", int: "integer", float: "number", Path: "file"}
    if len(members) == 1 and members[0] in plain:
        return plain[members[0]]  # type: ignore[return-value]
    if set(members) == {int, float}:
        return "number"
    if set(members) in ({int, str}, {int, float, str}):
        return "place"
    if set(members) == {str, Path}:
        return "file"
    sequences = [member for member in members if get_origin(member) in (list, tuple, Sequence)]
    if sequences and all(member in (str, int, float) or member in sequences for member in members):
        item = next(iter(get_args(sequences[0])), str)
        return {int: "integers", float: "numbers"}.get(item, "texts")  # type: ignore[return-value]
    return "python"


def _members(hint: Any) -> list[Any]:
    """The types of a union, without None."""
    if get_origin(hint) in (Union, types.UnionType):
        return [part for member in get_args(hint) if member is not type(None) for part in _members(member)]
    return [] if hint is type(None) else [hint]


def _option(name: str, hint: Any, default: Any, required: bool, help_: str) -> Option:
    kind, choices = kind_of(hint, name)
    optional = (default is None or _takes_none(hint)) and not required
    text = help_ or _SHARED.get(name, "")
    low, high = _range(name, kind, hint)
    if low is not None and isinstance(default, int | float) and default < low:
        low = default  # a count of 0 that means what suits
    return Option(
        name, kind, default, text, choices, required, field=name, optional=optional, minimum=low, maximum=high
    )  # fmt: skip


def _takes_none(hint: Any) -> bool:
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else ()
    return type(None) in members


def _range(name: str, kind: OptionKind, hint: Any) -> tuple[int | float | None, int | float | None]:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    marked = next((mark for mark in marks if isinstance(mark, Within)), None)
    if marked is not None:
        return marked.minimum, marked.maximum
    return (0 if name in _FROM_NOTHING else 1, None) if kind in ("integer", "integers") else (None, None)


def _fields(usual: Any, parameter: str = "", taken: Sequence[str] = ()) -> list[Option]:
    """The fields of a dataclass; of one with values, those are the defaults."""
    settings = usual if isinstance(usual, type) else type(usual)
    hints, documented = _hints(settings), documented_fields(settings)
    options = []
    for entry in dataclasses.fields(settings):
        factory = entry.default_factory
        default = factory() if factory is not dataclasses.MISSING else entry.default
        default = default if usual is settings else getattr(usual, entry.name)
        required = default is dataclasses.MISSING
        option = _option(
            entry.name, hints[entry.name], None if required else default, required, documented.get(entry.name, "")
        )
        name = f"{parameter}_{entry.name}" if entry.name in taken else entry.name
        options.append(dataclasses.replace(option, name=name, parameter=parameter, field=entry.name))
    return options


def _hints(of: Any) -> dict[str, Any]:
    return typing.get_type_hints(inspect.unwrap(of) if callable(of) else of, include_extras=True)
