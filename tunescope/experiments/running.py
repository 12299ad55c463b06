"""Running an experiment: every cell of the grid, every step once per content, resumable at each step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from tunescope.experiments.cell_steps import do_step, next_key, read_differences, read_models
from tunescope.experiments.materials import Materials, file_hash, files_named
from tunescope.experiments.references import pairs_reading
from tunescope.experiments.schema import Experiment
from tunescope.experiments.step_folder import Kept
from tunescope.experiments.sweeping import Cell, cells, scalar
from tunescope.experiments.trackers import Tracker, untracked
from workbench import __version__, runs
from workbench.errors import UserError
from workbench.files import room_for_folder
from workbench.placement import Placement, check_executor
from workbench.progress import Progress, Silent
from workbench.results import Provenance
from workbench.runs import Run
from workbench.runs.config import config_hash

KIND = "experiment"


@dataclass(frozen=True)
class Finished:
    """A finished experiment."""

    run: Run
    metrics: pd.DataFrame
    """The long table: cell, one column per swept setting, step, and the metrics' columns."""


def run_experiment(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    folder: str | Path = ".",
    tracker: Tracker | None = None,
    progress: Progress | None = None,
    executor: Literal["local", "ray", "vllm"] = "local",
    workers: int | None = None,
    engine_settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> Finished:
    """Run every cell into one run (kind ``experiment``) at ``out``, or resume there.

    ``folder``: where paths in the experiment start, the YAML file's folder. Without ``out`` the run is in the runs'
    home, under the experiment's name and the hash of its content. A finished run is read, not repeated.
    ``executor="ray"`` shares the steps of all cells out over ``workers`` processes of a Ray cluster that see the run's
    folder (default: one per GPU, else per CPU); the numbers are those of one process. ``executor="vllm"`` lets vLLM,
    opened with ``engine_settings``, write the texts of every step and read how likely texts are.
    ``say`` hears what differs between the models beside their weights, in sentences.

    Raises :class:`UserError` for what a step refuses (naming the cell and the step) and when ``out`` holds another
    experiment, other inputs or another version's results.
    """
    check_executor(executor, workers)
    where = Placement(workers, "vllm" if executor == "vllm" else "local", engine_settings)
    bar, report = progress or Silent(), tracker or untracked()
    grid = cells(experiment)
    materials = Materials(Path(folder), bar, say, where)
    beside = {**book_of(grid, materials), **where.settings()}
    config = {**run_config(experiment, grid, materials), **beside}
    target = place(experiment, out, beside)
    with room_for_folder(target):
        fresh = not target.exists()
    run = runs.create_at(target, kind=KIND, config=config)
    run.hold()
    try:
        if not run.is_complete:
            with where.ready(), run:
                if executor == "ray":
                    from tunescope.experiments.shared_steps import do_steps

                    do_steps(run, grid, materials, workers, bar)
                _all_cells(run, experiment, grid, materials, bar)
        elif say is not None:
            for sentence in read_differences(run):
                say(sentence)
        metrics = run.read_table("tables/metrics")
        _tracked(report, run, experiment, grid, metrics)
    except UserError:
        if fresh and not any(run.path.glob("steps/*/step.json")):
            shutil.rmtree(run.path)  # it never began; the folder would only be in the way of the next try
        raise
    finally:
        materials.let_go()
        run.let_go()
    return Finished(run, metrics)


def place(experiment: Experiment, out: str | Path | None, beside: Mapping[str, Any]) -> Path:
    """The run's folder; ``beside``: what numbers hang on that the experiment itself does not say."""
    if out is not None:
        return Path(out).absolute()
    return (
        runs.default_home() / f"{experiment.name}-{config_hash({**_described(experiment), **beside})[:10]}"
    ).absolute()


def book_of(grid: Sequence[Cell], materials: Materials) -> dict[str, Any]:
    """The files of the recipe book that lines are written with, by content; nothing where there is no line."""
    book = materials.book_hashes(recipe for cell in grid for recipe in cell.experiment.recipes.values())
    return {"book": book} if book else {}


def run_config(experiment: Experiment, grid: Sequence[Cell], materials: Materials) -> dict[str, Any]:
    """What decides the results, as the run keeps it: the experiment, and its inputs by content."""
    prompts = {
        name if cell.number == 0 else f"{name}, cell {cell.number}": digest
        for cell in grid
        if cell.number == 0 or any(_may_change_prompts(path) for path in cell.settings)
        for name, digest in _prompt_hashes(cell.experiment, materials).items()
    }
    files = {name: file_hash(materials.path(name)) for name in files_named(cell.experiment for cell in grid)}
    return {
        "experiment": _described(experiment), "prompts": prompts, "files": files, "tunescope": __version__,
    }  # fmt: skip


def _may_change_prompts(path: str) -> bool:
    return "pair" in (path.split(".")[0], *path.split(".")[2:3]) or path.startswith("prompts.")


def _prompt_hashes(experiment: Experiment, materials: Materials) -> dict[str, str]:
    """Set of prompts -> its hash; where steps read it for several organisms, one for each further one."""
    hashes: dict[str, str] = {}
    for name in experiment.prompts:
        reading = pairs_reading(experiment, name)
        for step, pair in reading.items():
            digest = materials.prompts(experiment, name, pair).hash
            if hashes.setdefault(name, digest) != digest:
                hashes[f"{name}, step {step}"] = digest
    return hashes


def _described(experiment: Experiment) -> dict[str, Any]:
    """Without what changes no number."""
    return {key: value for key, value in experiment.plain().items() if key not in ("tracker", "about")}


def _all_cells(run: Run, experiment: Experiment, grid: Sequence[Cell], materials: Materials, bar: Progress) -> None:
    from tunescope.experiments.sections import write_sections

    run.write_text("experiment.yaml", experiment.to_yaml())
    bar.start("steps of all cells", len(grid) * len(experiment.steps))
    done: dict[int, dict[str, Kept]] = {}
    for cell in _by_pair(grid):
        done[cell.number] = _cell(run, cell, materials, bar)
    bar.finish()
    write_sections(run, experiment, grid, [done[cell.number] for cell in grid])
    models = [read_models(path) for path in sorted(run.file("models").glob("*.json"))]
    # where its paths start: from here a run can be made again
    folder = str(materials.folder.resolve())
    run.note(models=models, versions=Provenance(probe=KIND, models={}).versions, folder=folder)


def _by_pair(grid: Sequence[Cell]) -> list[Cell]:
    """Cells with the same pair behind each other, so that each pair is loaded once."""
    order = list(dict.fromkeys(cell.experiment.pair.model_dump_json() for cell in grid))
    return sorted(grid, key=lambda cell: order.index(cell.experiment.pair.model_dump_json()))


def _cell(run: Run, cell: Cell, materials: Materials, bar: Progress) -> dict[str, Kept]:
    keys: dict[str, str] = {}
    folders: dict[str, Kept] = {}
    for name in cell.experiment.steps:
        keys[name] = next_key(run, cell, name, keys, materials)
        folders[name] = Kept(run, name, keys[name])
        if folders[name].path not in materials.whole and not folders[name].is_whole:
            do_step(cell, name, folders, materials, bar)
        materials.whole.add(folders[name].path)
        bar.advance()
    table = cell_table(cell, folders)
    run.write_table(f"{cell.folder}/metrics", table)
    run.write_json(f"{cell.folder}/cell", {"settings": dict(cell.settings), "steps": keys})
    return folders


def cell_table(cell: Cell, folders: dict[str, Kept]) -> pd.DataFrame:
    """The cell's part of the long table."""
    parts = [folders[name].metrics.assign(step=name) for name in cell.experiment.steps]
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    settings = {path: scalar(value) for path, value in cell.settings.items()}
    for place_, (path, value) in enumerate([("cell", cell.number), *settings.items()]):
        table.insert(place_, path, value)
    table.insert(len(settings) + 1, "step", table.pop("step"))
    return table


def _tracked(report: Tracker, run: Run, experiment: Experiment, grid: Sequence[Cell], metrics: pd.DataFrame) -> None:
    with report.opened(experiment.name, run) as log:
        for cell in grid:
            log.metrics(cell.number, named_metrics(metrics[metrics["cell"] == cell.number]))
        log.tables(sorted(run.file("tables").glob("*.parquet")))


def named_metrics(table: pd.DataFrame) -> dict[str, float]:
    """``step/of/metric`` (with the strength where there is one) -> estimate."""
    metrics = {}
    for row in table.to_dict("records"):
        dose = "" if pd.isna(row["strength"]) or row["strength"] == 1 else f" x{row['strength']:g}"
        if not pd.isna(row["estimate"]):
            metrics[f"{row['step']}/{row['of']}{dose}/{row['metric']}"] = float(row["estimate"])
    return metrics
