"""A run as the experiment that makes its results again, as far as the run says what they were made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunescope.experiments.from_diff import diff_parts
from tunescope.experiments.from_loading import loading_of
from tunescope.experiments.input_files import further_prompts, hash_in, own_prompts, settings_of
from tunescope.experiments.references import needs, recipes_of, sets_of
from tunescope.experiments.schema import Experiment
from tunescope.experiments.step_folder import RESULT
from workbench.errors import NotSupported, unknown_name
from workbench.methods import VERBS
from workbench.runs import Run
from workbench.runs.places import whole_path

RECORD = "experiments"
"""Where a run's provenance keeps experiments by pair, in plain values; paths in them start at the run's folder."""
_FILES = ("file", "haystack", "dictionary")
"""Keys whose value is a path."""
_AS_THEY_ARE = ("rows", "where", "options", "desiderata", "sets")
"""Keys whose values have keys of their own, which are columns, options or titles."""


def experiment_of_run(run: Run, pair: str = "") -> Experiment:
    """The experiment whose steps make the run's results again, one step per result and named as it is.

    ``pair``: which pair of models, where the run is about several. Raises :class:`NotSupported` where the run does not
    say how its results were made, and :class:`UserError` for a record that is no experiment.
    """
    record, config, verb = run.manifest.provenance.get(RECORD), run.config, str(run.config.get("verb", ""))
    if isinstance(record, Mapping) and record:
        name = pair or next(iter(record))
        if name not in record:
            raise unknown_name(f"pair in {run.path}", name, record)
        return _absolute(Experiment.of(record[name], f"{run.path}, provenance.{RECORD}.{name}"), run.path)
    if run.manifest.kind == "experiment" and "experiment" in config:
        made = Experiment.of(config["experiment"], f"{run.path}, its experiment")
        return _absolute(made, Path(str(run.manifest.provenance.get("folder", "."))))
    if verb.split(" ")[0] in VERBS.values() and "experiment" in config:
        return _of_command(run)
    if verb == "diff":
        return _of_diff_command(run)
    if run.manifest.kind == "record" and {"sites", "positions"} <= set(config):
        keys = ("sites", "layers", "positions", "new_tokens")
        step = {"do": "record", **{key: config[key] for key in keys if config.get(key) is not None}}
        return _of_one_step(run, "record", step, {"prompts": own_prompts(run, "")}, loading_of(run))
    raise NotSupported(
        f"{run.path} does not say how its results were made, so no experiment file makes them again; use the Python "
        "beside them."
    )


def only(experiment: Experiment, names: Iterable[str]) -> Experiment:
    """The experiment with these steps alone, and what they read: steps, recipes, prompts.

    Raises :class:`NotSupported` for a step that is not there.
    """
    wanted = list(names)
    for name in wanted:
        if name not in experiment.steps:
            raise NotSupported(
                f"The run does not say how {name!r} was made, so no experiment file makes it again; use its Python."
            )
    for name in wanted:
        wanted += [need for need in needs(experiment, name) if need not in wanted]
    steps = {name: step for name, step in experiment.steps.items() if name in wanted}
    recipes = {recipe for step in steps.values() for recipe in recipes_of(step)}
    sets = {rows for name, step in steps.items() for rows in (step.prompts, *sets_of(experiment, name))}
    return Experiment.of({
        **experiment.plain(),
        "steps": {name: step.plain() for name, step in steps.items()},
        "recipes": {name: recipe.plain() for name, recipe in experiment.recipes.items() if name in recipes},
        "prompts": {name: prompt.plain() for name, prompt in experiment.prompts.items() if name in sets},
        "sweep": {path: values for path, values in experiment.sweep.items() if _still_there(path, steps, recipes)},
    })  # fmt: skip


def _still_there(path: str, steps: Mapping[str, Any], recipes: set[str]) -> bool:
    first, _, rest = path.partition(".")
    name = rest.partition(".")[0]
    return first not in ("steps", "recipes", "prompts") or name in {"steps": steps, "recipes": recipes}.get(first, ())


def _of_one_step(
    run: Run, name: str, step: dict[str, Any], prompts: dict[str, Any], loaded: Mapping[str, Any] | None = None
) -> Experiment:
    """``loaded``: how the models are, in the ``pair``."""
    pair = {**pair_of_run(run), **(loaded or {})}
    return Experiment.of({"name": name, "pair": pair, "prompts": prompts, "steps": {name: step}}, str(run.path))


def _of_command(run: Run) -> Experiment:
    """Of a probe's run: the experiment that it keeps, on the prompts that it keeps."""
    file = run.file("experiment.yaml")
    made = Experiment.load(file) if file.is_file() else Experiment.of(run.config["experiment"], str(run.path))
    titles = _titles(made)
    prompts_file = str(run.config.get("prompts", ""))
    prompts = {
        name: own_prompts(run, prompts_file) if name == "prompts" else _still(run, titles.get(name, name), spec)
        for name, spec in made.prompts.items()
    }
    pair = {**made.pair.plain(), **pair_of_run(run)}
    return _absolute(Experiment.of({**made.plain(), "prompts": prompts, "pair": pair}), Path.cwd())


def _titles(experiment: Experiment) -> dict[str, str]:
    """Set of prompts -> the title under which a step's settings name it."""
    named = (getattr(step, "desiderata", {}) for step in experiment.steps.values())
    return {name: title for sets in named for title, name in sets.items()}


def _still(run: Run, title: str, spec: Any) -> dict[str, Any]:
    """A file of further prompts, which must hold what it did."""
    settings = settings_of(run, RESULT)
    digest = hash_in(settings, [title]) or hash_in(settings, ["desiderata", title])
    return further_prompts(run, str(spec.file), digest)


def _of_diff_command(run: Run) -> Experiment:
    try:
        return _of_diff(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotSupported(
            f"{run.path} does not say all that diff was given ({type(error).__name__}: {error}), so no experiment "
            "file makes its results again; run the command again."
        ) from error


def _of_diff(run: Run) -> Experiment:
    parts = diff_parts(run)
    prompts = {"prompts": own_prompts(run, str(run.config["prompts"])), **parts["prompts"]}
    values = {"name": "diff", **parts, "pair": {**pair_of_run(run), **parts["pair"]}, "prompts": prompts}
    return Experiment.of(values, str(run.path))


def pair_of_run(run: Run) -> dict[str, Any]:
    """The two models as the run names them; folders as whole paths."""
    pairs = run.manifest.provenance.get("pairs")
    named = next(iter(pairs.values())) if isinstance(pairs, Mapping) and pairs else run.config
    pair = {}
    for role in ("base", "tuned"):
        model = named.get(role)
        name = model.get("name") if isinstance(model, Mapping) else model
        if not isinstance(name, str) or not name:
            raise NotSupported(f"{run.path} does not name its {role} model, so no experiment file can load it.")
        pair[role] = whole_path(_pinned(name, run.config.get(role)))
    return pair


def _pinned(name: str, identity: Any) -> str:
    """A hub id at the revision that a recording says it had (``org/name@revision``)."""
    revision = identity.get("revision") if isinstance(identity, Mapping) else None
    return f"{name}@{revision}" if revision and "@" not in name and not Path(name).expanduser().exists() else name


def _absolute(experiment: Experiment, folder: Path) -> Experiment:
    """Files by their whole paths, which hold wherever the experiment file is kept; ``folder`` is where paths start."""
    return Experiment.of(_placed(experiment.plain(), folder.resolve()), str(folder))


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_place(key, item, folder) for key, item in value.items()}
    return [_placed(item, folder) for item in value] if isinstance(value, list) else value


def _in_place(key: str, value: Any, folder: Path) -> Any:
    if key in _AS_THEY_ARE:
        return value
    last = key.rpartition(".")[2]  # of a swept path
    if isinstance(value, list) and last != key:
        return [_in_place(last, item, folder) for item in value]
    if last in _FILES and isinstance(value, str):
        return str(folder / value)
    if last in ("base", "tuned") and isinstance(value, str):  # a folder, or a hub id
        return str(folder / value) if (folder / value).exists() else value
    return _placed(value, folder)
