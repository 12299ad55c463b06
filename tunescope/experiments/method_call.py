"""Calling a registered method with what an experiment's step says."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interventions as iv
from interventions.training.log import TrainingLog, save_trained
from probes.row_spans import row_spans
from tunescope.experiments import inline
from tunescope.experiments.materials import file_hash, files_named
from tunescope.experiments.method_steps import MethodStep
from tunescope.experiments.references import recipes_of, sets_of
from workbench import finished_batches
from workbench.behaviour.by_prompt import ByPrompt
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError, unknown_name
from workbench.method_options import Option
from workbench.methods import Method
from workbench.prompts import Prompts
from workbench.results import Provenance, Result

if TYPE_CHECKING:
    from tunescope.experiments.execute import Bench
    from workbench.models.adapted import AdaptedModel


TRAINED = "trained"
"""Folder, in that of the run or step, of what a training makes."""


def call_method(step: MethodStep, bench: Bench) -> Any:
    """The method's result. Raises :class:`UserError` for what it refuses."""
    if step.registration.kind == "training":
        return trained(step, bench)
    with finished_batches.scope(lambda: _content(step, bench, bench.pair.models)):
        return _result(step, bench)


def _content(step: MethodStep, bench: Bench, models: Mapping[str, AdaptedModel]) -> dict[str, Any]:
    """What the result depends on: models, prompts and files by hash, and the step's settings."""
    name = next(name for name, other in bench.experiment.steps.items() if other is step)
    return {
        "step": step.plain(), "seed": bench.seed,
        "recipes": [bench.experiment.recipes[name].plain() for name in recipes_of(step)],
        "models": {role: model.identity.hash for role, model in models.items()},
        "prompts": [bench.rows(group).hash for group in sets_of(bench.experiment, name)],
        "files": [file_hash(bench.materials.path(file)) for file in files_named([bench.experiment])],
    }  # fmt: skip


def _result(step: MethodStep, bench: Bench) -> Any:
    if getattr(step, "null_adapters", None) is not None:
        return _among_nulls(step, bench)
    result = _called(step, bench)
    if isinstance(result, Result):
        return result
    rows, beside = bench.rows(step.prompts), step.registration.control
    control = _called(step, bench, beside) if beside else None
    return ByPrompt.of(step.registration, step.settings(), subject(step, bench), rows, result, bench.seed, control)


def trained(step: MethodStep, bench: Bench) -> TrainingLog:
    """Train a model of its own, loaded for it, and save what comes of it in the step's folder.

    Inside a run that was killed it goes on behind the last checkpoint; what was saved already is saved again.
    """
    model = bench.materials.single(bench.spec, step.within)  # type: ignore[attr-defined]
    identity, place = model.identity.to_dict(), bench.folder / TRAINED
    settings = {"within": step.within, **step.settings()}  # type: ignore[attr-defined]
    if finished_batches.goes_on():
        shutil.rmtree(place, ignore_errors=True)
    with finished_batches.scope(lambda: _content(step, bench, {step.within: model})):  # type: ignore[attr-defined]
        made = _called(step, bench, model=model, out=place)
    save_trained(made, place, model.tokenizer)
    rows = bench.rows(step.prompts) if "prompts" in step.registration.arguments else None
    where = {"seed": bench.seed, "device": str(model.device), "settings": settings}
    return TrainingLog.of(made, Provenance.of(step.registration.function, {step.within: identity}, rows, **where))  # type: ignore[attr-defined]


def _among_nulls(step: Any, bench: Bench) -> Any:
    """The same call on the pair and on null adapters, which stand in for its adapter while the probe runs."""
    from probes.against_null_adapters import against_nulls

    if getattr(step, "record", None) is not None:
        raise UserError(
            f"null_adapters records every null adapter anew, and {step.do} reads the recording {step.record!r}: "
            "leave record out, and give sites and positions to the step itself."
        )

    def probe(_pair: Any) -> Any:
        return _called(step, bench)

    wanted = step.null_adapters
    result = against_nulls(probe, bench.pair, nulls=wanted, null_seed=bench.seed, progress=bench.progress)
    settings = {name: value for name, value in result.provenance.settings.items() if name not in _OF_NULLS}
    made = dataclasses.replace(
        result.provenance, probe=step.registration.function, settings={**settings, "null_adapters": step.null_adapters}
    )
    return dataclasses.replace(result, provenance=made)


_OF_NULLS = ("probe", "nulls", "null", "null_seed")


def _called(step: MethodStep, bench: Bench, beside: Mapping[str, Any] | None = None, **own: Any) -> Any:
    """``own``: what a training is given instead: a model that it may change, and a folder. ``beside``: arguments of a
    control, which come before those of the step."""
    method = step.registration
    recording = _recording(step, bench) if "recording" in method.arguments else None
    roles: dict[str, Callable[[], Any]] = {
        "pair": lambda: bench.pair,
        "subject": lambda: subject(step, bench),
        "model": lambda: bench.pair.tuned if recording is not None else subject(step, bench),
        "base": lambda: bench.pair,
        "recording": lambda: recording,
        "prompts": lambda: bench.rows(step.prompts),
        "seed": lambda: bench.seed,
        "progress": lambda: bench.progress,
    }
    arguments = {
        role: own[role] if role in own else roles[role]() for role in method.arguments if role in own or role in roles
    }  # fmt: skip
    rows = recorded_rows(step, bench)
    values = {
        name: _value(_option(method, name), value, bench, rows) for name, value in step.settings().items()
    }  # fmt: skip
    if method.option("layer") is not None and method.records is not None:
        values["layer"] = resolve_layers(step.layer, bench.pair.tuned.n_layers)[0]  # type: ignore[attr-defined]
    controls = [name for name in values if _option(method, name).kind == "controls"]
    values |= {name: _stand_ins(step, bench, values[name]) for name in controls}
    if "prompts" in arguments:
        arguments[method.reads] = arguments.pop("prompts")
    if method.takes_limit:
        arguments["limit"] = step.limit  # type: ignore[attr-defined]
    return method.call(**{**method.fixed, **_packed(method, values, arguments), **(beside or {})})


def _stand_ins(step: MethodStep, bench: Bench, draws: int) -> Any:
    """Random recipes like those that the step applies: a list for each, or one list where it applies one."""
    from probes.random_recipes import stand_ins

    names = recipes_of(step)
    model = bench.pair.models[str(getattr(step, "on", None) or getattr(step, "controls_on", "tuned"))]
    drawn = {
        name: stand_ins(bench.recipe(name), model, bench.rows(step.prompts), draws, bench.seed) for name in names
    }  # fmt: skip
    if any(option.kind == "recipe" for option in step.registration.options):
        return next(iter(drawn.values()))
    return {name: recipes for name, recipes in drawn.items() if recipes}


def subject(step: Any, bench: Bench) -> Any:
    """Both models, or the one that the step asks for."""
    return bench.pair if step.within == "pair" else bench.pair.models[step.within]


def recorded_rows(step: Any, bench: Bench) -> Prompts | None:
    """The prompts behind the recording that a step reads, else its own; None for a step without prompts."""
    if not bench.experiment.prompts:
        return None
    record = getattr(step, "record", None)
    return bench.rows((step if record is None else bench.experiment.steps[record]).prompts)


def column(rows: Prompts, name: str) -> list[Any]:
    """The values of a column of the prompts. Raises :class:`UserError` naming the closest one."""
    known = {key for row in rows for key in row.as_dict()}
    if name not in known:
        raise unknown_name("column", name, known)
    return [row.as_dict().get(name) for row in rows]


def _recording(step: Any, bench: Bench) -> Any:
    """The recording of the step it names, else its own, in memory."""
    from workbench.recording.record_pair import record

    if step.record is not None:
        return bench.results(step.record)
    layers = [step.layer] if hasattr(step, "layer") else step.layers
    return record(
        bench.pair, bench.rows(step.prompts), step.sites, layers=layers, positions=step.positions,
        new_tokens=step.new_tokens, progress=bench.progress,
    )  # fmt: skip


def _option(method: Method, name: str) -> Option:
    option = method.option(name)
    assert option is not None
    return option


def _value(option: Option, value: Any, bench: Bench, rows: Prompts | None) -> Any:
    """An option's value as the function takes it."""
    if value is None:
        return None
    match option.kind:
        case "prompts":
            return bench.rows(value)
        case "prompt sets":
            return {title: bench.rows(name) for title, name in value.items()}
        case "column":
            assert rows is not None
            return column(rows, value)
        case "spans":
            assert rows is not None
            return row_spans(rows, bench.pair.tokenizer, value)
        case "experts" if isinstance(value, inline.FirstOf):
            from tunescope.experiments.recipes import found_in

            return found_in(value, ("ExpertMap",), bench.materials, bench.results).ranking(value.first)
        case "file":
            return _existing(bench.materials.path(value), option)
        case "needles" if isinstance(value, str):
            return _existing(bench.materials.path(value), option)
        case "recipe":
            return iv.dose(bench.recipe(value)) if option.name == "dose" else bench.recipe(value)
        case "recipes":
            return {name: bench.recipe(name) for name in value}
        case "lora":
            from peft import LoraConfig

            return LoraConfig(r=value, lora_alpha=2 * value, target_modules="all-linear", task_type="CAUSAL_LM")
        case "behaviour":
            from workbench.behaviour.scorers import behaviour

            return behaviour(value)
    return value


def _existing(path: Path, option: Option) -> Path:
    if not path.exists():
        raise UserError(f"There is no file {path}: check {option.name}.")
    return path


def _packed(method: Method, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments; options that are fields of a settings dataclass, as that dataclass; so is the seed."""
    arguments = dict(arguments)
    takes = inspect.signature(method.call).parameters.values()
    own_seed = any(argument.name == "seed" or argument.kind is argument.VAR_KEYWORD for argument in takes)
    seed = {} if own_seed or "seed" not in arguments else {"seed": arguments.pop("seed")}
    options = {name: _option(method, name) for name in values}
    plain = {name: value for name, value in values.items() if not options[name].parameter}
    for parameter, settings in method.expands.items():
        fields = {
            option.field: values[name] for name, option in options.items() if option.parameter == parameter
        } | seed  # fmt: skip
        if fields:
            plain[parameter] = dataclasses.replace(settings() if isinstance(settings, type) else settings, **fields)
    return {**arguments, **plain}
