"""What the app shows, as the experiment file that makes it again with ``tunescope run``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboards import models
from dashboards.pair_form import RecordRequest
from dashboards.recipe_parts import ADAPTER, LAYERS, Experts, HeadDirections, Heads, KnobSet, Part, Saved, Weights
from dashboards.registered_part import Registered
from dashboards.results import StoredResult, results_in
from dashboards.selection import Selection, pair_of
from dashboards.steer_request import SteerRequest
from interventions.line_or_file import is_line
from workbench import runs

if TYPE_CHECKING:
    from tunescope.experiments.from_runs import Chosen
    from tunescope.experiments.schema import Experiment
    from workbench.prompts import Prompts

_AFTER = "last+generated"
"""Where the page Steer moves heads: :meth:`probes.HeadProbe.recipe`'s own."""


def steer_experiment(request: SteerRequest, beginning: str = "") -> str:
    """The YAML of a steer or a sweep: its answers, and the share that begins with a text, one step."""
    strengths = list(request.strengths) or [request.strength if request.has_strength else 1.0]
    generate = {
        "do": "generate", "recipes": ["steered"], "strengths": strengths, "on": request.side,
        "max_new_tokens": request.max_new_tokens, **({"begins": beginning.strip()} if beginning.strip() else {}),
    }  # fmt: skip
    return _yaml(
        {"name": "steer", "pair": _pair(request.base, request.tuned, request.device),
         "prompts": {"rows": request.inputs()}, "recipes": {"steered": _recipe(request.parts)},
         "steps": {"answers": generate}}
    )  # fmt: skip


def record_experiment(request: RecordRequest, prompts: Prompts) -> str:
    """The YAML of a recording."""
    step = {"do": "record", "sites": [*request.sites], "positions": request.positions, "new_tokens": request.new_tokens}
    return _yaml(
        {"name": "recording", "pair": _pair(request.base, request.tuned, request.device),
         "prompts": written_out(prompts), "steps": {"record": step}}
    )  # fmt: skip


def computed_experiment(
    models_: tuple[str, str], prompts: dict[str, Any], name: str, step: dict[str, Any], recipe: Any = None
) -> str:
    """The YAML of what a page computed itself: one step, with at most one recipe, which is called ``name`` too."""
    recipes = {} if recipe is None else {name: recipe}
    return _yaml(
        {"name": name, "pair": _pair(*models_, "auto"), "prompts": prompts, "recipes": recipes, "steps": {name: step}}
    )


def computed_steps(
    models_: tuple[str, str], prompts: dict[str, Any], name: str, steps: dict[str, dict[str, Any]]
) -> str:
    """The YAML of several steps on the same prompts."""
    return _yaml({"name": name, "pair": _pair(*models_, "auto"), "prompts": prompts, "steps": steps})


def stored_experiment(selection: Selection, names: Sequence[str] | None = None) -> str:
    """The YAML that makes these results of the selected run again; without names all that the run has.

    Raises :class:`workbench.errors.NotSupported` where the run does not say how a result was made.
    """
    from tunescope.experiments.from_run import experiment_of_run, only

    experiment = experiment_of_run(selection.opened(), selection.pair)
    if names is not None:
        experiment = only(experiment, names)
    return _where_it_was_made(experiment, selection).to_yaml()


def overlap_experiment(selection: Selection, results: Sequence[StoredResult]) -> str:
    """The YAML that makes grafts of the selected run again, and compares every two of them."""
    from tunescope.experiments.schema import Experiment

    names = list(dict.fromkeys(result.step or result.name for result in results))
    values = Experiment.parse(stored_experiment(selection, names)).plain()
    steps = {
        f"overlap-{number}": {"do": "compare", "first": {"from": name}, "second": {"from": other}}
        for number, (name, other) in enumerate(combinations(names, 2), 1)
    }
    return _yaml({**values, "steps": {**values["steps"], **steps}})


def compared_experiment(first: tuple[Path, StoredResult], second: tuple[Path, StoredResult]) -> str:
    """The YAML that makes a result of either run (its folder, and which) again and compares them."""
    from tunescope.experiments.from_runs import comparison_of

    return comparison_of(_chosen(*first), _chosen(*second)).to_yaml()


def both_experiment(first: Path, second: Path) -> str:
    """The YAML with all steps of two runs."""
    from tunescope.experiments.from_runs import both_of

    first_run, two = ((runs.open(folder), _device(results_in(folder))) for folder in (first, second))
    return both_of(first_run, two).to_yaml()


def _chosen(folder: Path, result: StoredResult) -> Chosen:
    from tunescope.experiments.from_runs import Chosen

    pair = pair_of(folder, result)
    step = result.step or result.called(pair).name
    return Chosen(runs.open(folder), result.file, step, pair, _device([result]))


def written_out(prompts: Prompts) -> dict[str, Any]:
    """A set of prompts with every row in the file."""
    return {"rows": [row.as_dict() for row in prompts]}


def _where_it_was_made(experiment: Experiment, selection: Selection) -> Experiment:
    """On the processor, where the run's results say that they were computed on it: other numbers are not the same."""
    device = _device(selection.results())
    if experiment.pair.device != "auto" or device == "auto":
        return experiment
    return experiment.model_copy(update={"pair": experiment.pair.model_copy(update={"device": device})})


def _device(results: Sequence[StoredResult]) -> str:
    """cpu, where all results that a device decides were computed on it."""
    devices = {result.load().provenance.device for result in results if result.kind != "WeightDelta"}
    return "cpu" if devices == {"cpu"} else "auto"


def _yaml(values: dict[str, Any]) -> str:
    from tunescope.experiments.schema import Experiment

    return Experiment.of(values).to_yaml()


def _pair(base: str, tuned: str, device: str) -> dict[str, Any]:
    from workbench.runs.places import whole_path

    from_, to = models.places(base.strip(), tuned.strip())
    return {"base": whole_path(from_), "tuned": whole_path(to), "device": device}


def _recipe(parts: tuple[Part, ...]) -> Any:
    from workbench.runs.places import whole_path

    if len(parts) == 1 and isinstance(parts[0], Saved):
        path = parts[0].path
        return {"line": path} if is_line(path) else {"file": whole_path(path)}
    return [_inline(_placed(part)) for part in parts]


def _placed(part: Any) -> Any:
    """The part with its file by its whole path."""
    from workbench.runs.places import whole_path

    return replace(part, path=whole_path(part.path)) if hasattr(part, "path") and not is_line(part.path) else part


def _inline(part: Part) -> dict[str, Any]:
    match part:
        case Saved():
            return {"kind": "Recipe", "line" if is_line(part.path) else "file": part.path}
        case Registered():
            return part.inline()
        case Experts():
            return {"kind": "ExpertSwitch", "off": [*part.off], "on": [*part.on], "mode": part.switch_mode}
        case Heads():
            return {"kind": "HeadScale", "scales": dict(part.scales)}
        case HeadDirections():
            probe = {"file": part.path, "first": part.count}
            return {"kind": "HeadOffset", "vectors": probe, "strength": part.sigmas, "positions": _AFTER}
        case KnobSet():
            return {"kind": "SubspaceKnob", "knob": {"file": part.path, "to": part.value}}
        case Weights(kind=str(kind)) if kind == ADAPTER:
            return {"kind": ADAPTER, "scale": part.a}
        case Weights():
            return {"kind": LAYERS, "a": part.a, "b": part.b}
    raise TypeError(f"no experiment file holds a {type(part).__name__}")
