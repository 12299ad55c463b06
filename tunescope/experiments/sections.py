"""What a finished experiment shows: tables, figures, and the sections that report and dashboard read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tunescope.experiments import steps
from tunescope.experiments.cell_steps import read_differences
from tunescope.experiments.schema import Experiment
from tunescope.experiments.step_folder import Kept
from tunescope.experiments.sweeping import Cell, scalar
from workbench.cards import counted
from workbench.figures.experiment import RANDOM, dose_figure, grid_figure
from workbench.runs import Run

_STEERING = (steps.Generate, steps.Diff, steps.Dose)
_OF_RECIPES = (*_STEERING, steps.Scope, steps.Parts)
DRAWN = 4
"""Figures of one probe at most, one per different result."""


def write_sections(run: Run, experiment: Experiment, grid: Sequence[Cell], folders: Sequence[dict[str, Kept]]) -> None:
    """Write ``tables/``, ``figures/`` and ``sections.json``; ``folders`` are the steps of each cell of ``grid``."""
    metrics = pd.concat([run.read_table(f"{cell.folder}/metrics") for cell in grid], ignore_index=True)
    run.write_table("tables/metrics", metrics)
    run.write_table("tables/cells", _cells_table(grid))
    effects = _effects(experiment, metrics)
    run.write_table("tables/effects", effects)
    sections = [_overview(experiment, grid, read_differences(run), has_effects=bool(len(effects)))]
    for name, step in experiment.steps.items():
        own = [by_step[name] for by_step in folders]
        tables = _step_tables(name, grid, own)
        for title, table in tables.items():
            run.write_table(f"tables/{title}", table)
        drawn = _drawn(name, step, grid, own, metrics[metrics["step"] == name])
        for title, figure in drawn.items():
            run.write_text(f"figures/{title}.json", figure.to_json())
        sections.append({
            "title": f"{name}: {step.do}", "text": _summaries(grid, own), "tables": [*tables], "figures": list(drawn),
        })  # fmt: skip
    run.write_json("sections", sections)


def _overview(
    experiment: Experiment, grid: Sequence[Cell], differences: Sequence[str], *, has_effects: bool
) -> dict[str, Any]:
    cells = "One cell" if len(grid) == 1 else f"{len(grid)} cells"
    swept = f" over {', '.join(experiment.sweep)}" if experiment.sweep else ""
    meaning = (
        "Control is what random stand-ins of a recipe came to on average, change is against the same model without the "
        "recipe. All numbers of all steps are in tables/metrics.parquet."
    )
    text = f"{cells}{swept}; {counted(len(experiment.steps), 'step')}." + (f" {meaning}" if has_effects else "")
    beside = f"Beside their weights: {' '.join(differences)}" if differences else ""
    text = "\n\n".join(part for part in (experiment.about, text, beside) if part)
    tables = (["cells"] if len(grid) > 1 else []) + ["effects" if has_effects else "metrics"]
    return {"title": experiment.name, "text": text, "tables": tables, "figures": []}


def _effects(experiment: Experiment, metrics: pd.DataFrame) -> pd.DataFrame:
    """The recipes' lines of the long table, without base, tuned and the stand-ins themselves."""
    names = [name for name, step in experiment.steps.items() if isinstance(step, _OF_RECIPES)]
    recipe = ~metrics["of"].isin(["base", "tuned"]) & ~metrics["of"].str.startswith(RANDOM)
    return metrics[metrics["step"].isin(names) & recipe].drop(columns="q").reset_index(drop=True)


def _cells_table(grid: Sequence[Cell]) -> pd.DataFrame:
    rows = [
        {"cell": cell.number, **{path: scalar(value) for path, value in cell.settings.items()}, "folder": cell.folder}
        for cell in grid
    ]
    return pd.DataFrame(rows)


def _step_tables(name: str, grid: Sequence[Cell], own: Sequence[Kept]) -> dict[str, pd.DataFrame]:
    """By title: the step's tables one below the other, with the first cell that each result belongs to."""
    by_title: dict[str, list[pd.DataFrame]] = {}
    for cell, folder in _distinct(grid, own):
        for title, table in {
            name: folder.table,
            **{f"{name}.{more}": part for more, part in folder.more.items()},
        }.items():
            by_title.setdefault(title, []).append(table.assign(cell=cell.number))
    whole = {title: pd.concat(tables, ignore_index=True) for title, tables in by_title.items()}
    return {title: table[["cell", *(column for column in table if column != "cell")]] for title, table in whole.items()}


def _summaries(grid: Sequence[Cell], own: Sequence[Kept]) -> str:
    first = _distinct(grid, own)
    shared = len(grid) - len(first)
    alike = len({folder.summary for _, folder in first}) == 1
    lines = [
        folder.summary if alike else f"{cell.label}: {folder.summary}"
        for cell, folder in first[: 1 if alike else DRAWN]
    ]
    if len(first) > DRAWN and not alike:
        lines.append(f"... and {len(first) - DRAWN} more, in the tables.")
    if shared:
        lines.append(f"Nothing that this step reads differs in {shared} further cells, which share these results.")
    return "\n\n".join(lines)


def _distinct(grid: Sequence[Cell], own: Sequence[Kept]) -> list[tuple[Cell, Kept]]:
    by_key: dict[str, tuple[Cell, Kept]] = {}
    for cell, folder in zip(grid, own, strict=True):
        by_key.setdefault(folder.key, (cell, folder))
    return list(by_key.values())


def _drawn(name: str, step: Any, grid: Sequence[Cell], own: Sequence[Kept], metrics: pd.DataFrame) -> dict[str, Any]:
    """Figures by file name."""
    labels = {cell.number: cell.label for cell in grid}
    if isinstance(step, _STEERING):
        if not len(metrics):
            return {}
        draw = dose_figure if isinstance(step, steps.Dose) else grid_figure
        title = f"{name}: n = {metrics['n'].max():.0f} prompts, 95 % intervals; grey rings: random stand-ins"
        return {name: draw(metrics, labels, title=title)}
    figures: dict[str, Any] = {}
    for cell, folder in _distinct(grid, own)[:DRAWN]:
        result = folder.result()
        if hasattr(result, "figure"):
            figures[name if not figures else f"{name}-cell-{cell.number}"] = result.figure()
    return figures
