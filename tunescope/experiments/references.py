"""Whether everything that an experiment names is there, and stands before what uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from tunescope.experiments import steps
from tunescope.experiments.key_kinds import named
from tunescope.experiments.method_steps import MethodStep
from tunescope.experiments.step_options import check_options
from tunescope.experiments.strict import refusal, unknown
from workbench.method_index import index

if TYPE_CHECKING:
    from tunescope.experiments.inputs import PairSpec
    from tunescope.experiments.schema import Experiment

_TAKEN = ("cells", "effects", "metrics")
"""Tables of every run, which no step's table may replace."""


class Use(NamedTuple):
    """One mention of a step: where it stands, and which."""

    path: tuple[Any, ...]
    step: str
    kinds: tuple[str, ...]
    """The steps that it can read, by name; empty for any probe."""


def recipes_of(step: Any) -> dict[str, tuple[Any, ...]]:
    """The recipes that a step uses -> the key that names them."""
    return {name: path for path, name in named(step, "recipes")}


def other_prompts(step: Any) -> list[str]:
    """Sets of prompts that a step reads besides its own."""
    return [name for _, name in _named_sets(step)]


def sets_of(experiment: Experiment, name: str) -> list[str]:
    """The sets of prompts that step ``name`` reads, its own first."""
    step: Any = experiment.steps[name]
    own = [] if not steps.reads_prompts(step) else [step.prompts or next(iter(experiment.prompts))]
    return [*own, *other_prompts(step)]


def _named_sets(step: Any) -> list[tuple[tuple[Any, ...], str]]:
    """Where a further set of prompts is named, and which."""
    return [(path, name) for path, name in named(step, "prompts") if path != ("prompts",)]


def uses_of_recipe(recipe: Any) -> Iterator[Use]:
    """The steps that a recipe reads."""
    yield from _walk(recipe, ())


def needs(experiment: Experiment, name: str) -> list[str]:
    """The steps that step ``name`` reads, directly or through its recipes, each once."""
    step: Any = experiment.steps[name]
    names = [step.record] if getattr(step, "record", None) else []
    names += [use.step for use in _walk(step, ())]
    for recipe in recipes_of(step):
        names += [use.step for use in uses_of_recipe(experiment.recipes[recipe])]
    return list(dict.fromkeys(names))


def check_references(experiment: Experiment) -> None:
    """Raise an error with the place of the first name that leads nowhere."""
    for name, recipe in experiment.recipes.items():
        if name in ("base", "tuned"):
            raise refusal(f"a recipe cannot be called {name!r}, as a model is; give another name.", "recipes", name)
        for use in uses_of_recipe(recipe):
            _check_use(experiment, use, ("recipes", name), list(experiment.steps))
    earlier: list[str] = []
    for name, step in experiment.steps.items():
        _check_step(experiment, name, step, earlier)
        earlier.append(name)
    for name, rows in experiment.prompts.items():
        if rows.split is not None and any(pair.organism is None for pair in pairs_reading(experiment, name).values()):
            raise refusal("only an organism has splits; give file or rows.", "prompts", name, "split")


def pairs_reading(experiment: Experiment, name: str) -> dict[str, PairSpec]:
    """The models for which a set of prompts is read, by a step that reads it; the experiment's where none does."""
    readers = [step for step in experiment.steps if name in sets_of(experiment, step)]
    return {step: experiment.pair_of(step) for step in readers} or {"": experiment.pair}


def _check_step(experiment: Experiment, name: str, step: Any, earlier: list[str]) -> None:
    place = ("steps", name)
    if name in _TAKEN:
        raise refusal(f"a step cannot be called {name!r}, as a table of the run is; give another name.", *place)
    if not experiment.prompts and steps.reads_prompts(step):
        raise refusal("needs prompts; add a set of them under prompts.", *place)
    if step.prompts is not None and not steps.reads_prompts(step) and _named_sets(step):
        raise refusal("these are several sets: name them under desiderata.", *place, "prompts")
    for path, wanted in named(step, "prompts"):
        if wanted not in experiment.prompts:
            raise refusal(unknown(f"set of prompts {wanted!r}", wanted, list(experiment.prompts)), *place, *path)
    if getattr(step, "record", None) is not None:
        _check_use(experiment, Use(("record",), step.record, ("record",)), place, earlier)
        for key in ("prompts", "sites", "positions", "pair"):
            if key in step.model_fields_set:
                raise refusal(f"step {step.record!r} decides the {key}; leave it out.", *place, key)
    for recipe, path in recipes_of(step).items():
        if recipe not in experiment.recipes:
            raise refusal(unknown(f"recipe {recipe!r}", recipe, list(experiment.recipes)), *place, *path)
        for use in uses_of_recipe(experiment.recipes[recipe]):
            if use.step not in earlier:
                raise refusal(
                    f"recipe {recipe!r} reads step {use.step!r}, which comes later; move that step up.", *place, *path
                )
    for use in _walk(step, ()):
        _check_use(experiment, use, place, earlier)
    _check_metrics(step, place)
    check_options(step, place)


def _check_use(experiment: Experiment, use: Use, place: tuple[Any, ...], earlier: list[str]) -> None:
    where = (*place, *use.path)
    if use.step not in experiment.steps:
        raise refusal(unknown(f"step {use.step!r}", use.step, list(experiment.steps)), *where)
    if use.step not in earlier:
        raise refusal(f"step {use.step!r} comes later; move it up.", *where)
    step: Any = experiment.steps[use.step]
    if not _can_read(step, use.kinds):
        wanted = " or ".join(repr(kind if kind == "record" else f"localize {kind}") for kind in use.kinds)
        wanted = wanted or "any localize step"
        raise refusal(f"step {use.step!r} does {step.do!r}; this needs a step that does {wanted}.", *where)


def _can_read(step: Any, kinds: tuple[str, ...]) -> bool:
    if kinds:
        return step.do.rpartition(" ")[2] in kinds
    return isinstance(step, MethodStep) and step.registration.kind == "probe"


def _check_metrics(step: Any, place: tuple[Any, ...]) -> None:
    if not isinstance(step, steps.Compared | steps.Parts):
        return
    from workbench.behaviour import METRICS
    from workbench.behaviour.scorers import is_behaviour_text, read_metrics
    from workbench.errors import UserError

    for number, metric in enumerate(step.metrics or ()):
        if is_behaviour_text(metric):
            try:
                read_metrics([metric])
            except UserError as error:
                raise refusal(str(error), *place, "metrics", number) from error
        elif metric not in METRICS:
            raise refusal(unknown(f"metric {metric!r}", metric, list(METRICS)), *place, "metrics", number)
    if "perplexity" not in (step.metrics or ()):
        return
    if isinstance(step, steps.Parts):
        raise refusal("perplexity is of neutral texts, which these parts do not divide; leave it out.", *place,
                      "metrics")  # fmt: skip
    if step.neutral is None:
        raise refusal("perplexity needs neutral, a set of prompts with neutral texts.", *place, "metrics")


def _walk(value: Any, path: tuple[Any, ...]) -> Iterator[Use]:
    step = getattr(value, "from_step", None)
    if step is not None:
        what = getattr(type(value), "takes", "")
        yield Use((*path, "from"), step, (*(["record"] if what == "directions" else []), *index().giving(what)))
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _walk(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _walk(item, (*path, number))
