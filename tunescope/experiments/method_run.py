"""A method called by itself, from command line or app: a one-step experiment, and the run that keeps its result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunescope.experiments.inputs import PromptSet
from tunescope.experiments.requirements import check_null, check_pair, check_prompts
from tunescope.experiments.schema import Experiment
from workbench import first_batch, runs
from workbench.first_batch import Phase
from workbench.methods import Method
from workbench.placement import Placement
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.runs import Run
from workbench.runs.places import PROMPTS, whole_path

RESULT = "result.safetensors"
EXPERIMENT = "experiment.yaml"
"""The file that makes the result again; its keys keep their order, which those of the manifest do not."""


@dataclass(frozen=True)
class MethodCall:
    """What a person says: a method, its models, prompts and options."""

    method: Method
    base: str
    tuned: str | None = None
    """None for a method that reads the base alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Path | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    out: Path | None = None
    workers: int | None = None
    """Processes of a Ray cluster that the work is shared out over; it changes no number."""
    executor: str = "local"
    """Who writes texts and reads how likely they are: local, or vllm."""
    engine_settings: Mapping[str, Any] | None = None
    """For vLLM."""
    null_adapters: str | int | None = None
    """A kind of null adapters, or how many, that the scores are set beside."""

    @property
    def placement(self) -> Placement:
        """Where it runs. Raises :class:`UserError` for what does not go together."""
        return Placement(self.workers, self.executor, self.engine_settings)

    def experiment(self) -> dict[str, Any]:
        """The one-step experiment that does the same, as plain values."""
        name = self.method.name
        step: dict[str, Any] = {"do": self.method.command}
        step |= {} if self.null_adapters is None else {"null_adapters": self.null_adapters}
        sets: dict[str, Any] = {}
        recipes: dict[str, Any] = {}
        if self.prompts is not None:
            sets["prompts"] = {"file": str(self.prompts)}
        for key, value in self.options.items():
            option = self.method.option(key)
            kind = None if option is None else option.kind
            if kind == "prompts":
                sets[key], step[key] = {"file": value}, key
            elif kind == "prompt sets":
                named = _names(value)
                sets |= {named[title]: {"file": file} for title, file in value.items()}
                step[key] = {title: named[title] for title in value}
            elif kind in ("recipe", "recipes"):
                made = _recipes([value] if kind == "recipe" else value)
                recipes |= made
                step[key] = next(iter(made)) if kind == "recipe" else [*made]
            else:
                step[key] = value
        loading = {key: value for key, value in (("device", self.device), ("dtype", self.dtype)) if value != "auto"}
        seed = {"seed": self.seed} if self.seed else {}
        pair = {"base": self.base, "tuned": self.tuned or self.base, **loading}
        named_recipes = {"recipes": recipes} if recipes else {}
        return {"name": name, **seed, "pair": pair, "prompts": sets, **named_recipes, "steps": {name: step}}


@dataclass(frozen=True)
class Checked:
    """A call whose options, models and prompts have been looked at; nothing is loaded yet."""

    call: MethodCall
    experiment: Experiment
    prompts: Prompts | None
    """The rows that are read: all, or the sample of ``limit``."""

    def computed(self, progress: Progress, say: Callable[[str], None] | None = None) -> tuple[Run, Any]:
        """Load, compute and write the run, which is listed as running meanwhile; one that is refused leaves nothing.

        Args:
            say: Where a notice goes, such as that both models are loaded after all.

        Returns:
            The run and the result that it keeps.
        """
        call, say = self.call, say or (lambda _: None)
        if call.limit is not None and self.prompts is not None and len(self.prompts) < call.limit:
            say(f"A limit of {call.limit} is more than the {len(self.prompts)} prompts there are: all are read.")
        where = call.placement
        with where.ready(), runs.begun(call.method.name, _config(call, self.experiment), call.out) as run:
            result = _result(self.experiment, call.method, self.prompts, progress, say, run.path, where)
            _write(run, self, result)
        return run, result

    def timed(self) -> tuple[list[Phase], bool]:
        """Load the models and run until the first batch of a long phase; nothing is written.

        Returns:
            The phases with the seconds that each takes, and whether the method came to its end meanwhile.
        """
        with tempfile.TemporaryDirectory() as folder:
            return first_batch.timed(
                lambda progress: _result(
                    self.experiment, self.call.method, self.prompts, progress, lambda _: None, Path(folder)
                )
            )


def checked(call: MethodCall) -> Checked:
    """Refuse what can be known to be wrong before a model is loaded.

    Raises:
        UserError: An option, a path or a column is wrong; one sentence.
    """
    call.placement  # noqa: B018 (what does not go together is refused here)
    experiment = Experiment.of(call.experiment(), call.method.command)
    check_pair(call.method, experiment.pair)
    if call.null_adapters is not None:
        check_null(call.method, experiment.pair)
    return Checked(call, experiment, check_prompts(call.method, experiment, call.limit))


def _recipes(paths: Sequence[str]) -> dict[str, Any]:
    """Name -> where a recipe is: its file, or its line in the workspace's book."""
    from interventions.line_or_file import is_line, recipe_name
    from tunescope.experiments.naming import plain_names

    names = plain_names(map(recipe_name, paths), otherwise="recipe")
    return {names[recipe_name(path)]: {"line" if is_line(path) else "file": path} for path in paths}


def _names(titles: Mapping[str, Any]) -> dict[str, str]:
    from tunescope.experiments.naming import plain_names

    return plain_names(titles, taken=["prompts", *PromptSet.model_fields], otherwise="desideratum")


def _result(
    experiment: Experiment,
    method: Method,
    prompts: Prompts | None,
    bar: Progress,
    say: Callable[[str], None],
    folder: Path,
    where: Placement | None = None,
) -> Any:
    from tunescope.experiments.execute import Bench
    from tunescope.experiments.materials import Materials
    from tunescope.experiments.method_call import call_method

    if method.needs.folders:
        return _of_folders(experiment, method, bar, say)
    materials = Materials(Path(), bar, say)
    if prompts is not None:
        materials.hold_prompts(experiment, "prompts", prompts)
    bench = Bench(
        experiment=experiment, spec=experiment.pair, materials=materials, results=_no_step, folder=folder,
        seed=experiment.seed, progress=bar,
    )  # fmt: skip
    step: Any = experiment.steps[method.name]
    if where is None or where == Placement():
        return call_method(step, bench)
    with where.on(bench.pair):
        return call_method(step, bench)


def _no_step(name: str) -> Any:
    raise KeyError(name)


def _of_folders(experiment: Experiment, method: Method, bar: Progress, say: Callable[[str], None]) -> Any:
    """From the files alone, or from the loaded pair where they do not tell."""
    from probes.weights.sources import NotInFiles
    from workbench.models.pair import load_pair

    step: Any = experiment.steps[method.name]
    pair, settings = experiment.pair, {**step.settings(), "progress": bar}
    if "seed" in method.arguments:
        settings["seed"] = experiment.seed
    try:
        return method.call(pair.base, pair.tuned, **settings)
    except NotInFiles as error:
        say(f"{error.reason}, so both models are loaded.")
        return method.call(load_pair(pair.base, pair.tuned, device=pair.device, dtype=pair.dtype), **settings)


def _config(call: MethodCall, experiment: Experiment) -> dict[str, Any]:
    """What the run was asked for: the same again is the same run."""
    from workbench.recording.load_options import load_options

    options = {
        "base": call.base,
        **({"tuned": call.tuned} if call.tuned else {}),
        **({"prompts": str(call.prompts)} if call.prompts else {}),
    }
    config = {
        "verb": call.method.command, **options, "seed": call.seed,
        **load_options({"device": call.device, "dtype": call.dtype}), "experiment": experiment.plain(),
    }  # fmt: skip
    config |= call.placement.settings()
    return config if call.limit is None else {**config, "limit": call.limit}


def _write(run: Run, checked: Checked, result: Any) -> None:
    """The run's result, table, figure and prompts, and the experiment that makes it again."""
    run.keep_pair(checked.call.base, checked.call.tuned or checked.call.base, checked.prompts)
    result.save(run.file(RESULT))
    run.write_table("table", result.frame())
    run.write_text(EXPERIMENT, _as_kept(checked.experiment).to_yaml())
    run.write_text("figures/figure.json", result.figure().to_json())


def _as_kept(experiment: Experiment) -> Experiment:
    """The experiment on the models' whole paths and on the prompts that the run keeps, so that it runs from there."""
    values = experiment.plain()
    for role in ("base", "tuned"):
        values["pair"][role] = whole_path(values["pair"][role])
    for name, spec in values.get("prompts", {}).items():
        spec["file"] = PROMPTS if name == "prompts" else whole_path(spec["file"])
    for spec in values.get("recipes", {}).values():
        spec["file"] = whole_path(spec["file"])
    return Experiment.of(values)
