"""One cell of an experiment: what its steps' numbers hang on, and doing a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunescope.experiments.execute import Bench, execute
from tunescope.experiments.inputs import PairSpec
from tunescope.experiments.materials import Materials
from tunescope.experiments.schema import Experiment
from tunescope.experiments.step_folder import Kept, seed_of, step_key
from tunescope.experiments.steps import loads_models
from tunescope.experiments.sweeping import Cell
from workbench.errors import UserError
from workbench.finished_batches import resumable, scope
from workbench.progress import Progress
from workbench.runs import Run
from workbench.runs.config import config_hash, plain
from workbench.runs.places import BATCHES
from workbench.sealed_json import read_sealed, write_sealed


def keys_of(run: Run, cell: Cell, materials: Materials) -> dict[str, str]:
    """Step -> hash of what its numbers hang on. Raises :class:`UserError` where the run began with other weights."""
    keys: dict[str, str] = {}
    for name in cell.experiment.steps:
        keys[name] = next_key(run, cell, name, keys, materials)
    return keys


def next_key(run: Run, cell: Cell, name: str, earlier: dict[str, str], materials: Materials) -> str:
    """The key of a step, from those of the steps before it. Raises as :func:`keys_of`."""
    return step_key(cell.experiment, name, _models(run, cell.experiment, name, materials), earlier, materials)


def _models(run: Run, experiment: Experiment, step: str, materials: Materials) -> dict[str, str]:
    """Role -> hash of the models that a step uses; empty where it uses none."""
    if not loads_models(experiment.steps[step]):
        return {}
    spec = experiment.pair_of(step)
    pair = materials.pair(spec)
    _same_models(run, spec, pair)
    return {role: model.identity.hash for role, model in pair.models.items()}


def do_step(cell: Cell, name: str, folders: dict[str, Kept], materials: Materials, bar: Progress) -> None:
    """One step of a cell, into its folder. Raises :class:`UserError` naming the cell and the step."""
    experiment = cell.experiment
    bench = Bench(
        experiment=experiment, spec=experiment.pair_of(name), materials=materials, results=_results(folders),
        folder=folders[name].path, seed=seed_of(experiment, name), progress=bar,
    )  # fmt: skip
    try:
        with resumable(bench.folder / BATCHES), scope(lambda: folders[name].key):
            outcome = execute(experiment.steps[name], bench)
    except UserError as error:
        where = f"step {name}" if not cell.settings else f"cell {cell.number} ({cell.label}), step {name}"
        raise UserError(f"{where}: {error}") from error
    folders[name].write(experiment.steps[name].do, outcome)


def _results(folders: dict[str, Kept]) -> Callable[[str], Any]:
    """Results of earlier steps, always as they are on the disk: a resumed run reads the same numbers."""
    read: dict[str, Any] = {}

    def result(name: str) -> Any:
        if name not in read:
            read[name] = folders[name].result()
        return read[name]

    return result


def _same_models(run: Run, spec: PairSpec, pair: Any) -> None:
    """Refuse to go on with other weights than those a killed run began with; write down what differs beside them."""
    name = f"{config_hash(spec.plain())[:10]}.json"
    beside, file = run.file(f"differences/{name}"), run.file(f"models/{name}")
    if not beside.is_file():
        write_sealed(beside, {pair.tuned.identity.name: pair.differences.sentences()})
    now = plain({role: model.identity.to_dict() for role, model in pair.models.items()})
    if not file.is_file():
        write_sealed(file, now)
    before = read_models(file)
    for role, identity in now.items():
        if before[role]["hash"] != identity["hash"]:
            raise UserError(
                f"{run.path} was begun with another {role} model ({before[role]['name']}, other weights); give another "
                "folder, or remove that one."
            )


def read_models(path: Path) -> dict[str, Any]:
    """The identities of a pair, as the run keeps them."""
    return read_sealed(path, "delete it, and the same command writes it again")


def read_differences(run: Run) -> list[str]:
    """What differs between the models of each pair beside their weights; of several pairs with the tuned one's name."""
    files = sorted(run.file("differences").glob("*.json"))
    pairs = [item for path in files for item in read_sealed(path, "delete it and run again").items()]
    named = len(pairs) > 1
    return [f"{tuned}: {sentence}" if named else sentence for tuned, said in pairs for sentence in said]
