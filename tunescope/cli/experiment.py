"""``tunescope run``: a scripted experiment, from a YAML file into a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.cli.where_it_runs import EngineSettings, Executor, Workers, placement

if TYPE_CHECKING:
    from tunescope.experiments.running import Finished
    from tunescope.experiments.schema import Experiment
    from workbench.placement import Placement

EXAMPLE = """
Example, offline:

  tunescope run examples/experiment.yaml --dry-run
"""
_LINES = 60


def run(
    file: Annotated[Path, typer.Argument(help="The experiment: a .yaml file.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; default: one in ./runs, named for the experiment.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and list its cells and steps; load no model.")
    ] = False,
    tracker: Annotated[str | None, typer.Option(help="Also log to mlflow or wandb; off by default.")] = None,
    workers: Workers = None,
    executor: Executor = "local",
    engine_settings: EngineSettings = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Run an experiment: pair, prompts, steps, recipes and a sweep over them. The same command resumes a killed run."""
    from tunescope.experiments.schema import Experiment

    where = placement(workers, executor, engine_settings)
    experiment = Experiment.load(file)
    if dry_run:
        _list(experiment, file, out, where, as_json)
        return
    from tunescope.cli.output import progress_bar, say_differences
    from tunescope.experiments.running import run_experiment
    from tunescope.experiments.trackers import tracker as named

    run_tracker = named(tracker or experiment.tracker)
    with progress_bar() as bar:
        finished = run_experiment(
            experiment, out, folder=file.parent, tracker=run_tracker, progress=bar,
            executor="ray" if workers is not None else "vllm" if where.executor == "vllm" else "local", workers=workers,
            engine_settings=where.engine_settings, say=lambda sentence: say_differences([sentence]),
        )  # fmt: skip
    _print(finished, as_json)


run.__doc__ = f"{run.__doc__}\n\n\b{EXAMPLE}"


def _print(finished: Finished, as_json: bool) -> None:
    from tunescope.cli.output import emit

    payload = {"run": str(finished.run.path), "metrics": finished.metrics}
    effects = finished.run.read_table("tables/effects")
    table = effects if len(effects) else finished.metrics
    table = table.drop(columns=[name for name in table if table[name].isna().all()])
    more = f" (the first {_LINES} of {len(table)} lines)" if len(table) > _LINES else ""
    emit(payload, as_json, table.head(_LINES), title=f"{finished.run.path}{more}")
    if not as_json:
        typer.echo(f"Everything: {finished.run.file('tables/metrics.parquet')}")
        typer.echo(f"Report:     tunescope report {finished.run.path} --open")


def _list(experiment: Experiment, file: Path, out: Path | None, where: Placement, as_json: bool) -> None:
    """Cells and steps; files that the experiment reads must be there, and prompts must leave rows."""
    from tunescope.cli.output import emit
    from tunescope.experiments.materials import Materials, files_named
    from tunescope.experiments.references import needs, recipes_of, sets_of
    from tunescope.experiments.running import book_of, place
    from tunescope.experiments.sweeping import cells
    from workbench.cards import counted
    from workbench.errors import UserError

    grid, materials = cells(experiment), Materials(file.parent)
    named = [*files_named(cell.experiment for cell in grid), *(prompt.file for prompt in experiment.prompts.values())]
    for name in named:
        if name is not None and not materials.path(name).exists():
            raise UserError(f"There is no file {materials.path(name)}, which {file} names: check the path.")
    for cell in grid:
        materials.check_prompts(cell.experiment)
    steps: list[dict[str, Any]] = [
        {"step": name, "does": step.do, "prompts": ", ".join(sets_of(experiment, name)),
         "recipes": ", ".join(recipes_of(step)), "reads": ", ".join(needs(experiment, name))}
        for name, step in experiment.steps.items()
    ]  # fmt: skip
    target = place(experiment, out, {**book_of(grid, materials), **where.settings()})
    payload: dict[str, Any] = {
        "experiment": experiment.name, "run": str(target), "steps": steps,
        "cells": [{"cell": cell.number, "settings": dict(cell.settings)} for cell in grid],
    }  # fmt: skip
    if as_json:
        emit(payload, as_json)
        return
    runs_in = "the only cell" if len(grid) == 1 else f"each of {len(grid)} cells"
    emit(None, False, steps, title=f"{experiment.name}: {counted(len(steps), 'step')} in {runs_in}")
    emit(None, False, [{"cell": cell.number, "settings": cell.label} for cell in grid], title=payload["run"])
