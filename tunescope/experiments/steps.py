"""The steps of an experiment; those of registered methods are named as their commands are: ``localize heads``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationError

from tunescope.experiments.derived_interventions import Layer, Positions
from tunescope.experiments.inline import ResultRef
from tunescope.experiments.key_kinds import PromptsName, RecipeName
from tunescope.experiments.method_steps import MethodStep, load_step, probe_of_function, step_names
from tunescope.experiments.step_base import Step
from tunescope.experiments.strict import MOST, MOST_DRAWS, misplaced, placed, refusal, unknown
from workbench.method_index import index

MIN_DRAWS = 10


def _a_word(begins: str) -> str:
    if not begins.strip():
        raise refusal("is empty; give the word that the responses begin with, as in sorry.")
    return begins


Begins = Annotated[str, AfterValidator(_a_word)]


class Record(Step):
    """Activations of both models, into the run."""

    do: Literal["record"] = "record"
    sites: list[str] = Field(default=["resid_post"])
    layers: list[Layer] | None = None
    positions: Positions = "last"
    new_tokens: int = Field(default=0, ge=0, le=MOST)


class Compare(Step):
    """Two results of the same kind, cell by cell, and how far they agree; loads no model."""

    do: Literal["compare"] = "compare"
    first: ResultRef
    second: ResultRef


def _enough(draws: int) -> int:
    if 0 < draws < MIN_DRAWS:
        raise refusal(f"a control needs at least {MIN_DRAWS} random draws, or 0 for none; got {draws}.")
    return draws


Draws = Annotated[int, Field(ge=0, le=MOST_DRAWS), AfterValidator(_enough)]
"""Random draws matched to every recipe; 0: none."""


class Compared(Step):
    """What steps share that measure behaviour."""

    metrics: list[str] = Field(default=["accuracy", "prob", "kl"], min_length=1)
    """Names of ``workbench.behaviour.METRICS``, and behaviours: ``"begins:I am sorry"``, ``"contains:policy"``."""
    neutral: PromptsName | None = None
    """A set of prompts whose texts perplexity is measured on."""
    controls: Draws = MIN_DRAWS
    options: dict[str, Any] = Field(default={})
    """Further options of ``behaviour_diff``: max_new_tokens, samples, temperature, continuation, batch_size, …"""


class Generate(Step):
    """Greedy answers of base, tuned, and of one side under each recipe at each strength."""

    do: Literal["generate"] = "generate"
    recipes: list[RecipeName] = Field(default=[])
    strengths: list[float] = Field(default=[1.0], min_length=1)
    on: Literal["base", "tuned"] = "tuned"
    max_new_tokens: int = Field(default=32, ge=1, le=MOST)
    begins: Begins | None = None
    """Also the share of answers that begin with this text, signs and spaces included."""


class Diff(Compared):
    """base | tuned | tuned under each recipe | base under each of ``base_recipes``, with random stand-ins."""

    do: Literal["diff"] = "diff"
    recipes: list[RecipeName] = Field(default=[])
    base_recipes: list[RecipeName] = Field(default=[])


class Dose(Compared):
    """One recipe at several strengths, beside random stand-ins at the same strengths."""

    do: Literal["dose"] = "dose"
    recipe: RecipeName
    strengths: list[float] = Field(min_length=1)
    on: Literal["base", "tuned"] = "tuned"
    outside: PromptsName | None = None
    """A set of prompts that should not change: how far the recipe moves them, as ``kl out of scope``."""


class Scope(Step):
    """How often recipes change behaviour in scope (``prompts``), near it and beyond it."""

    do: Literal["scope"] = "scope"
    recipes: list[RecipeName] = Field(min_length=1)
    on: Literal["base", "tuned"] = "tuned"
    near: PromptsName | None = None
    """A set of prompts near the recipes' scope."""
    outside: PromptsName
    """A set of prompts out of scope."""
    changed: Literal["next_token", "text", "refusal"] = "next_token"
    """What a change is: another next token, another greedy text, or a refusal where there was none (or none now)."""
    controls: Draws = MIN_DRAWS
    max_new_tokens: int = Field(default=32, ge=1, le=MOST)


class Parts(Step):
    """Behaviour on what the base knows and does not, or on what the tuned model is sure of and is not."""

    do: Literal["parts"] = "parts"
    by: Literal["known", "sure"]
    recipes: list[RecipeName] = Field(default=[])
    """Applied to the tuned model."""
    metrics: list[str] | None = Field(default=None, min_length=1)
    """Names of ``workbench.behaviour.METRICS``; left out: those of ``known_unknown`` or ``sure_unsure``."""
    options: dict[str, Any] = Field(default={})
    """Further options of these two: knows (of known), threshold (of sure), max_new_tokens, batch_size, …"""


_BUILT_IN: dict[str, type[Step]] = {
    str(kind.model_fields["do"].default): kind for kind in (Record, Generate, Diff, Dose, Scope, Parts, Compare)
}


def reads_prompts(step: Step) -> bool:
    """Whether a step reads prompts of its own."""
    if isinstance(step, MethodStep):
        return not {"prompts", "recording"}.isdisjoint(step.registration.arguments)
    return not isinstance(step, Compare)


def loads_models(step: Step) -> bool:
    """Whether a step loads models."""
    return not isinstance(step, Compare)


def _step_of(values: Any) -> Any:
    """The step that plain values describe."""
    if isinstance(values, Step):
        return values
    if not isinstance(values, Mapping):
        raise refusal(f"{values!r} is no mapping; give keys with values.")
    if "do" not in values:
        raise misplaced("is missing; it says what this is.", "do")
    do = str(values["do"])
    try:
        if do == "probe":
            return _called_by_function(values)
        if index().called(do) is not None and do not in _BUILT_IN:
            return load_step(values, do)
        if do not in _BUILT_IN:
            raise refusal(unknown(f"value {do!r}", do, [*_BUILT_IN, *step_names()]), "do")
        return _BUILT_IN[do].model_validate(values)
    except ValidationError as error:
        raise placed(error, values) from None


def _called_by_function(values: Mapping[str, Any]) -> Any:
    """``do: probe`` of older files named the Python function as ``call``, and prompts among its options as ``sets``."""
    call = str(values.get("call", ""))
    entry = probe_of_function(call)
    if entry is None:
        raise refusal(unknown(f"value {call!r}", call, [entry.function for entry in index().entries]), "call")
    rest = {key: value for key, value in values.items() if key not in ("do", "call", "sets")}
    return load_step({**rest, **values.get("sets", {})}, entry.name)


AnyStep = Annotated[SerializeAsAny[Step], BeforeValidator(_step_of)]
