"""The steps of all cells of an experiment, shared out over workers; the run then finds them done."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tunescope.experiments.cell_steps import do_step, keys_of
from tunescope.experiments.materials import Materials
from tunescope.experiments.step_folder import Kept
from tunescope.experiments.sweeping import Cell
from workbench import runs
from workbench.cluster.team import team
from workbench.errors import UserError
from workbench.progress import Progress
from workbench.runs import Run

Task = tuple[int, str, dict[str, str]]
"""Number of a cell, name of a step, and the keys of the cell's steps."""


def do_steps(run: Run, grid: Sequence[Cell], materials: Materials, workers: int | None, bar: Progress) -> None:
    """Do every step of every cell once, in a team of workers that all see the run's folder.

    Steps that stand at the same place in their cells run at the same time; the steps behind them read them from the
    disk. What is whole is not done again.

    Raises:
        UserError: What a step refuses, naming the cell and the step; Ray is missing; the cluster is too small.
    """
    keys = {cell.number: keys_of(run, cell, materials) for cell in grid}
    materials.let_go()  # the weights: the workers have them now
    with team(None, workers) as crew:
        job = crew.job(
            partial(_do, run.path, Materials(materials.folder.resolve()), {entry.number: entry for entry in grid})
        )
        for place in range(max(len(cell.experiment.steps) for cell in grid)):
            tasks = _at(place, run, grid, keys)
            bar.start(f"steps of all cells, number {place + 1} of each", len(tasks))
            for _ in crew.each(job, tasks):
                bar.advance()
            bar.finish()


def _at(place: int, run: Run, grid: Sequence[Cell], keys: dict[int, dict[str, str]]) -> list[Task]:
    """The different steps at one place of all cells that are not whole."""
    tasks: dict[Path, Task] = {}
    for cell in grid:
        names = list(cell.experiment.steps)
        if place < len(names):
            folder = Kept(run, names[place], keys[cell.number][names[place]])
            if folder.path not in tasks and not folder.is_whole:
                tasks[folder.path] = (cell.number, names[place], keys[cell.number])
    return list(tasks.values())


def _do(path: Path, materials: Materials, grid: dict[int, Cell], task: Task) -> None:
    """One step, in a worker."""
    number, name, keys = task
    if not path.is_dir():
        raise UserError(f"A worker does not see {path}: give a folder that all machines of the cluster share.")
    run = runs.open(path)
    folders = {step: Kept(run, step, key) for step, key in keys.items()}
    if not folders[name].is_whole:  # of a worker that died after it
        do_step(grid[number], name, folders, materials, materials.progress)
