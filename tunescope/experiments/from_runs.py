"""Two runs as one experiment: the comparison of a result of each, or all steps of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from tunescope.experiments.from_run import RECORD, experiment_of_run, only, pair_of_run
from tunescope.experiments.key_kinds import keys_naming
from tunescope.experiments.naming import plain_names
from tunescope.experiments.schema import Experiment
from tunescope.experiments.step_base import Step
from tunescope.experiments.steps import reads_prompts
from tunescope.experiments.sweeping import cells
from workbench.errors import NotSupported, UserError
from workbench.runs import Run

COMPARE = "compare"
"""The step that compares."""


@dataclass(frozen=True)
class Chosen:
    """A result of a run."""

    run: Run
    file: str
    """Its file inside the run."""
    step: str
    """The step that makes it, as the run's own experiment calls it."""
    pair: str = ""
    """Which pair of models, where the run is about several."""
    device: str = "auto"
    """Where it was computed, where that decides its last digits."""


class _Side(NamedTuple):
    """What one result is compared from: its steps, or, with the reason, its file."""

    experiment: Experiment | None
    reason: str
    ref: dict[str, str]


def comparison_of(first: Chosen, second: Chosen) -> Experiment:
    """The experiment that makes both results again and compares them.

    A result whose run does not say how it was made is read from its file, and ``about`` says so. Raises
    :class:`NotSupported` where neither can be made again and none names its models.
    """
    sides = {"first": _side(first), "second": _side(second)}
    made = {name: side.experiment for name, side in sides.items() if side.experiment is not None}
    values: dict[str, Any] = _merged(made) if made else {"seed": 0, "pair": _models(first, second), "steps": {}}
    refs: dict[str, dict[str, str]] = {}
    for name, side in sides.items():
        steps = {} if side.experiment is None else _renaming(name, side.experiment)["steps"]
        refs[name] = {key: steps.get(value, value) for key, value in side.ref.items()}
    seed = {} if values["seed"] == 0 else {"seed": 0}  # the page draws equal scores with the seed 0
    values["steps"] = {**values["steps"], COMPARE: {"do": "compare", **refs, **seed}}
    left = [f"The {name} result is read from its file. {side.reason}" for name, side in sides.items() if side.reason]
    return Experiment.of({"name": "comparison", **({"about": " ".join(left)} if left else {}), **values})


def both_of(first: tuple[Run, str], second: tuple[Run, str]) -> Experiment:
    """All steps of both runs (each with the device of its results, or auto), one run's behind the other's.

    Raises :class:`NotSupported` for a run that does not say how it was made, and for one that sweeps.
    """
    sides = {
        f"{name}-{pair}" if pair else name: experiment
        for name, (run, device) in (("first", first), ("second", second))
        for pair, experiment in _experiments(run, device).items()
    }
    return Experiment.of({"name": "both", **_merged(sides)})


def _experiments(run: Run, device: str) -> dict[str, Experiment]:
    """Those of all its pairs, by name; of the only one without."""
    record = run.manifest.provenance.get(RECORD)
    several = [str(name) for name in record] if isinstance(record, Mapping) and len(record) > 1 else [""]
    experiments = {pair: _on(device, experiment_of_run(run, pair)) for pair in several}
    for experiment in experiments.values():
        if experiment.sweep:
            raise NotSupported(
                f"{run.path} sweeps over {', '.join(experiment.sweep)}, and a grid does not fit beside another run in "
                "one file: take its own from the page Overview."
            )
    return experiments


def _side(place: Chosen) -> _Side:
    try:
        experiment = only(_in_its_cell(place, experiment_of_run(place.run, place.pair)), [place.step])
    except UserError as error:
        return _Side(None, str(error), {"file": str(place.run.file(place.file).resolve())})
    return _Side(_on(place.device, experiment), "", {"from": place.step})


def _on(device: str, experiment: Experiment) -> Experiment:
    """On the device on which the results were computed, where the experiment leaves that open."""
    if experiment.pair.device != "auto":
        return experiment
    return experiment.model_copy(update={"pair": experiment.pair.model_copy(update={"device": device})})


def _in_its_cell(place: Chosen, experiment: Experiment) -> Experiment:
    """Of a sweep the first cell that the result belongs to."""
    if not experiment.sweep:
        return experiment
    _, _, key = place.file.split("/")[1].rpartition("-")
    for cell in cells(experiment):
        note = f"{cell.folder}/cell"
        if not place.run.file(f"{note}.json").is_file():
            continue
        made = place.run.read_json(note).get("steps", {})
        if str(made.get(place.step, "")).startswith(key):
            return cell.experiment
    raise NotSupported(f"{place.run.path} does not say in which cell of its grid {place.file} was made.")


def _models(first: Chosen, second: Chosen) -> dict[str, Any]:
    """The models of results that are read from their files: they are named, and never loaded."""
    from workbench.result_glance import glance

    for place in (first, second):
        seen = glance(place.run.file(place.file))
        if seen is not None and seen.models.get("base") and seen.models.get("tuned"):
            return {role: seen.models[role] for role in ("base", "tuned")}
    return pair_of_run(first.run)


def _merged(sides: Mapping[str, Experiment]) -> dict[str, Any]:
    """Seed, models, prompts, recipes and steps of all; each side's names begin with its own."""
    first = next(iter(sides.values()))
    merged: dict[str, Any] = {"seed": first.seed, "pair": first.pair.plain(), "prompts": {}, "recipes": {}, "steps": {}}
    for name, side in sides.items():
        names = _renaming(name, side)
        for kind in ("prompts", "recipes"):
            for own, value in getattr(side, kind).items():
                merged[kind][names[kind][own]] = _renamed(value, names).plain()
        for own in side.steps:
            merged["steps"][names["steps"][own]] = _step(side, own, names, first).plain()
    return merged


def _renaming(side: str, experiment: Experiment) -> dict[str, dict[str, str]]:
    """prompts, recipes, steps -> own name -> the name in the merged file."""
    return {kind: _with_side(side, getattr(experiment, kind)) for kind in ("prompts", "recipes", "steps")}


def _with_side(side: str, names: Iterable[str]) -> dict[str, str]:
    plain = list(names)
    return dict(zip(plain, plain_names(f"{side}-{name}" for name in plain).values(), strict=True))


def _step(experiment: Experiment, name: str, names: dict[str, dict[str, str]], first: Experiment) -> Step:
    """The step under its new names, with the seed and the models that it had."""
    step: Any = _renamed(experiment.steps[name], names)
    changes = {
        key: _named(getattr(step, key), names[kind])
        for kind in ("prompts", "steps", "recipes")
        for key in keys_naming(type(step), kind)
    }
    if step.seed is None and experiment.seed != first.seed:
        changes["seed"] = experiment.seed
    if getattr(step, "record", None) is None:  # else the recording decides them
        if step.prompts is None and experiment.prompts and reads_prompts(step):
            changes["prompts"] = names["prompts"][next(iter(experiment.prompts))]
        if step.pair is None and experiment.pair != first.pair:
            changes["pair"] = experiment.pair
    changed: Step = step.model_copy(update=changes)
    return changed


def _named(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names[value]
    if isinstance(value, Mapping):
        return {key: names[name] for key, name in value.items()}
    return [names[name] for name in value] if isinstance(value, list) else value


def _renamed(value: Any, names: Mapping[str, Mapping[str, str]]) -> Any:
    """The same, where it reads a step (``from``) with that step's new name."""
    if isinstance(value, BaseModel):
        changes = {key: _renamed(getattr(value, key), names) for key in type(value).model_fields}
        if changes.get("from_step") is not None:
            changes["from_step"] = names["steps"][changes["from_step"]]
        return value.model_copy(update=changes)
    if isinstance(value, Mapping):
        return {key: _renamed(item, names) for key, item in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value
