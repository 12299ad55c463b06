"""Whether everything that an experiment names is there, and stands before what uses it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from workbench.cli.experiment import inline, steps
from workbench.cli.experiment.strict import refusal, unknown

if TYPE_CHECKING:
    from workbench.cli.experiment.schema import Experiment

_GIVES: dict[type, tuple[type[steps.Step], ...]] = {
    inline.KnobRef: (steps.Knob,),
    inline.ConceptsRef: (steps.Concepts,),
    inline.ProbedHeads: (steps.HeadProbes,),
    inline.SkillRef: (steps.Skills,),
    inline.ScaledHeads: (steps.Heads, steps.HeadProbes),
    inline.FirstOf: (steps.Experts,),
    inline.TensorRef: (steps.Record, steps.Activations, steps.Concepts, steps.Knob),
}
"""Reference -> the kinds of step it can read."""


class Use(NamedTuple):
    """One mention of a step: where it stands, and which."""

    path: tuple[Any, ...]
    step: str
    kinds: tuple[type[steps.Step], ...]


def recipes_of(step: Any) -> dict[str, tuple[Any, ...]]:
    """The recipes that a step uses -> the key that names them."""
    if isinstance(step, steps.Dose):
        return {step.recipe: ("recipe",)}
    named = {name: ("recipes", number) for number, name in enumerate(getattr(step, "recipes", ()))}
    return named | {name: ("base_recipes", number) for number, name in enumerate(getattr(step, "base_recipes", ()))}


def other_prompts(step: Any) -> list[str]:
    """Sets of prompts that a step reads besides its own."""
    return [name for name in (getattr(step, "ood", None), getattr(step, "neutral", None)) if name is not None]


def uses_of_recipe(recipe: Any) -> Iterator[Use]:
    """The steps that a recipe reads."""
    yield from _walk(recipe, ())


def needs(experiment: Experiment, name: str) -> list[str]:
    """The steps that step ``name`` reads, directly or through its recipes, each once."""
    step: Any = experiment.steps[name]
    found = [step.record] if getattr(step, "record", None) else []
    found += [use.step for use in _walk(step, ())]
    for recipe in recipes_of(step):
        found += [use.step for use in uses_of_recipe(experiment.recipes[recipe])]
    return list(dict.fromkeys(found))


def check_references(experiment: Experiment) -> None:
    """Raise an error with the place of the first name that leads nowhere."""
    for name, rows in experiment.prompts.items():
        if rows.split is not None and experiment.pair.organism is None:
            raise refusal("only an organism has splits; give file or rows.", "prompts", name, "split")
    for name, recipe in experiment.recipes.items():
        if name in ("base", "tuned"):
            raise refusal(f"a recipe cannot be called {name!r}, as a model is; give another name.", "recipes", name)
        for use in uses_of_recipe(recipe):
            _check_use(experiment, use, ("recipes", name), list(experiment.steps))
    earlier: list[str] = []
    for name, step in experiment.steps.items():
        _check_step(experiment, name, step, earlier)
        earlier.append(name)


def _check_step(experiment: Experiment, name: str, step: Any, earlier: list[str]) -> None:
    place = ("steps", name)
    if not experiment.prompts and not isinstance(step, steps.WITHOUT_PROMPTS):
        raise refusal("needs prompts; add a set of them under prompts.", *place)
    for key in ("prompts", "ood", "neutral"):
        wanted = getattr(step, key, None)
        if wanted is not None and wanted not in experiment.prompts:
            raise refusal(unknown(f"set of prompts {wanted!r}", wanted, list(experiment.prompts)), *place, key)
    if getattr(step, "record", None) is not None:
        _check_use(experiment, Use(("record",), step.record, (steps.Record,)), place, earlier)
        for key in ("prompts", "sites", "positions"):
            if key in step.model_fields_set:
                raise refusal(f"step {step.record!r} decides the {key}; leave it out.", *place, key)
    for recipe, named in recipes_of(step).items():
        if recipe not in experiment.recipes:
            raise refusal(unknown(f"recipe {recipe!r}", recipe, list(experiment.recipes)), *place, *named)
        for use in uses_of_recipe(experiment.recipes[recipe]):
            if use.step not in earlier:
                raise refusal(
                    f"recipe {recipe!r} reads step {use.step!r}, which comes later; move that step up.", *place, *named
                )
    for use in _walk(step, ()):
        _check_use(experiment, use, place, earlier)
    _check_metrics(step, place)
    _check_options(step, place)


def _check_use(experiment: Experiment, use: Use, place: tuple[Any, ...], earlier: list[str]) -> None:
    where = (*place, *use.path)
    if use.step not in experiment.steps:
        raise refusal(unknown(f"step {use.step!r}", use.step, list(experiment.steps)), *where)
    if use.step not in earlier:
        raise refusal(f"step {use.step!r} comes later; move it up.", *where)
    step: Any = experiment.steps[use.step]
    if not isinstance(step, use.kinds):
        wanted = " or ".join(repr(str(kind.model_fields["do"].default)) for kind in use.kinds)
        raise refusal(f"step {use.step!r} does {step.do!r}; this needs a step that does {wanted}.", *where)


def _check_metrics(step: Any, place: tuple[Any, ...]) -> None:
    if isinstance(step, steps.Compared):
        from workbench.behaviour import METRICS

        for number, metric in enumerate(step.metrics):
            if metric not in METRICS:
                raise refusal(unknown(f"metric {metric!r}", metric, list(METRICS)), *place, "metrics", number)
        if "perplexity" in step.metrics and step.neutral is None:
            raise refusal("perplexity needs neutral, a set of prompts with neutral texts.", *place, "metrics")


def _check_options(step: Any, place: tuple[Any, ...]) -> None:
    if isinstance(step, steps.Probe):
        _check_call(step, place)
        return
    if not getattr(step, "options", None):
        return
    taken = {"seed", "progress", "responses", "refusal", "controls_on", "thresholds", *type(step).model_fields}
    known = [field.name for field in dataclasses.fields(_options_of(step)) if field.name not in taken]
    for key in step.options:
        if key not in known:
            raise refusal(unknown(f"option {key!r}", key, known), *place, "options", key)


def _check_call(step: steps.Probe, place: tuple[Any, ...]) -> None:
    """The options of a probe called by name; those that it passes on are checked by itself."""
    import probes

    first, _, *own = inspect.signature(getattr(probes, step.call)).parameters.values()
    if first.name == "pair" and step.within != "pair":
        raise refusal(f"{step.call} compares both models; leave within out.", *place, "within")
    known = [one.name for one in own if one.kind is not one.VAR_KEYWORD and one.name not in ("seed", "progress")]
    for key in step.options:
        if key not in known and len(known) == len([one for one in own if one.name not in ("seed", "progress")]):
            raise refusal(unknown(f"option {key!r}", key, known), *place, "options", key)
    for one in own:
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD and one.name not in step.options:
            raise refusal(f"{step.call} needs {one.name}; give it under options.", *place)


def _options_of(step: Any) -> Any:
    """The dataclass of the options that the step's function takes."""
    if isinstance(step, steps.Skills):
        from probes.grafting.search import Settings

        return Settings
    if isinstance(step, steps.Experts):
        from probes.experts.mapping import MapOptions

        return MapOptions
    if isinstance(step, steps.Switching):
        from probes.experts.switching import SwitchOptions

        return SwitchOptions
    if isinstance(step, steps.Knob):
        from probes import KnobSetup

        return KnobSetup
    if isinstance(step, steps.Heads):
        from probes.patches.patching import PatchOptions

        return PatchOptions
    from workbench.behaviour.options import DiffOptions

    return DiffOptions


def _walk(value: Any, path: tuple[Any, ...]) -> Iterator[Use]:
    step = getattr(value, "from_step", None)
    if step is not None:
        yield Use((*path, "from"), step, _GIVES[type(value)])
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _walk(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _walk(one, (*path, key))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _walk(one, (*path, number))
