"""The step of every registered probe (``do: localize NAME``), training (``train``) and behaviour (``measure``), made
from its signature."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from tunescope.experiments.derived_interventions import Layer, Positions
from tunescope.experiments.key_kinds import StepName
from tunescope.experiments.option_types import annotation_of
from tunescope.experiments.step_base import Step
from tunescope.experiments.strict import refusal, unknown
from workbench.errors import UserError
from workbench.method_index import Entry, index, load_method
from workbench.method_options import Option
from workbench.methods import VERBS, Method

KINDS = ("random", "shuffled")
NULLS = 19
"""The fewest null adapters with which a place can be at p = .05."""


def _known_null(value: str | int) -> str | int:
    if value in KINDS or (isinstance(value, int) and not isinstance(value, bool) and value >= NULLS):
        return value
    raise ValueError(f"{value!r} names no null adapters; give random, shuffled, or a number of {NULLS} or more.")


NullAdapters = Annotated[str | int, AfterValidator(_known_null)]
"""A kind of null adapter, of which 19 are drawn, or how many random ones."""
ALIASES = {"label": "labels"}
"""Keys of older experiment files -> the option that they are now."""


class MethodStep(Step):
    """A registered method: its options are keys; what its first parameters ask for comes from the experiment."""

    registration: ClassVar[Method]

    @model_validator(mode="before")
    @classmethod
    def _older_keys(cls, values: Any) -> Any:
        """``options`` held what had no key of its own; ``label`` and ``begins`` were keys."""
        if not isinstance(values, Mapping):
            return values
        new = {ALIASES.get(key, key) if key not in cls.model_fields else key: value for key, value in values.items()}
        nested = new.pop("options", {}) if "options" not in cls.model_fields else {}
        if not isinstance(nested, Mapping):
            raise refusal(f"{nested!r} is no mapping; give options with values.", "options")
        known = [option.name for option in cls.registration.options]
        for key in nested:
            if key not in known:
                raise refusal(unknown(f"option {key!r}", str(key), known), "options", key)
        if "begins" in new and "behaviour" in cls.model_fields:
            new["behaviour"] = f"begins:{new.pop('begins')}"
        return {**new, **nested}

    def settings(self) -> dict[str, Any]:
        """Option -> value, of those that were chosen."""
        return {
            option.name: getattr(self, option.name)
            for option in self.registration.options
            if option.name in type(self).model_fields
            and getattr(self, option.name) != _default(self.registration, option)
        }


def takes_null(method: Method) -> bool:
    """Whether a probe can be put among null adapters: it reads a loaded pair, whose adapter can be replaced."""
    reads = {"pair", "subject", "recording"} & set(method.arguments)
    return method.kind == "probe" and bool(reads) and not method.needs.folders


def step_names() -> list[str]:
    """What ``do`` may be, of registered methods."""
    return [entry.command for entry in index().entries if entry.kind in VERBS]


def probe_of_function(function: str) -> Entry | None:
    """The first probe that is this public function."""
    return next((entry for entry in index().entries if entry.function == function and entry.kind == "probe"), None)


@cache
def step_type(name: str) -> type[MethodStep]:
    """The schema of the step of method ``name``; imports that method."""
    method = load_method(name)
    do = method.command
    keys: dict[str, Any] = {"do": (Literal[do], do), **_role_keys(method)}
    for option in method.options:
        if option.kind != "python":
            keys[option.name] = (annotation_of(option), ... if option.required else _default(method, option))
    made = create_model(do.replace(" ", "_"), __base__=MethodStep, __doc__=method.question, **keys)
    made.registration = method
    return made


def load_step(values: Mapping[str, Any], do: str) -> MethodStep:
    """A step from plain values. Raises pydantic's errors, or a refusal where the method cannot be imported."""
    entry = index().called(do)
    assert entry is not None
    try:
        kind = step_type(entry.name)
    except UserError as error:
        raise refusal(str(error), "do") from error
    return kind.model_validate({**values, "do": entry.command})


def _role_keys(method: Method) -> dict[str, Any]:
    """Keys for what the probe is given besides its options."""
    keys: dict[str, Any] = {}
    first = method.arguments[0] if method.arguments else ""
    if first == "subject":
        keys["within"] = (Literal["pair", "base", "tuned"], "pair")
    elif first == "model":
        keys["within"] = (Literal["base", "tuned"], "base" if method.kind == "training" else "tuned")
    if takes_null(method):
        keys["null_adapters"] = (NullAdapters | None, None)
    if method.takes_limit:
        keys["limit"] = (int | None, Field(default=None, ge=1))
    if method.records is not None:
        records = method.records
        keys["record"] = (StepName | None, Field(default=None))
        keys["sites"] = (list[str], Field(default=list(records.sites), min_length=1))
        keys["positions"] = (Positions, records.positions)
        keys["new_tokens"] = (int, Field(default=0, ge=0))
        if method.option("layer") is None:
            keys["layers"] = (list[Layer] | None, None)
    return keys


def _default(method: Method, option: Option) -> Any:
    """The option's default in an experiment file: plain values, and the layer that is recorded."""
    if option.name == "layer" and method.records is not None and option.default is None:
        return method.records.layers
    return list(option.default) if isinstance(option.default, tuple) else option.default
