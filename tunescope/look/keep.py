"""A look as a run: results, recipes, prompts, and the four steps as sections that report and dashboard show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import interventions as iv
from tunescope.look.dosing import follow_dose
from tunescope.look.notes import CHANGED, FILE, KEEP, STEPS, TURN, WHERE, LookNotes, StepNote, notes_of, plain
from tunescope.look.steps import Look, kept_sentence, run_step
from workbench import runs
from workbench.errors import UserError
from workbench.progress import Progress
from workbench.results import Result
from workbench.runs import Run

_SHOWN = {
    CHANGED: ("answers",), WHERE: ("heads", "layers", "weights", "activations", "lens"),
    TURN: ("candidates", "direction"),
}  # fmt: skip
"""Step -> the results that its section shows."""


def extend(look: Look, config: dict[str, Any], step: str, progress: Progress, out: Path | None = None) -> Run:
    """Do one step of a look, on what the run with this configuration has of it already, and write it there.

    Args:
        look: Both models and the questions, with nothing found yet.
        config: Whatever tells this look from another.
        step: One of ``STEPS``; the last only writes.
        out: The run's folder; None: one in the runs' home, named by the configuration.

    Raises:
        UserError: Another process writes the run.
    """

    def work(resumed: Look) -> None:
        if step != KEEP:
            run_step(resumed, step, progress)

    return _extended(look, config, work, out)


def extend_by_dose(look: Look, config: dict[str, Any], candidate: str, progress: Progress, out: Path) -> Run:
    """Follow the dose of a candidate of the run in ``out``, and write the result there.

    Args:
        look: Both models and the questions, with nothing found yet.
        config: The run's configuration.
        candidate: A recipe of the run.
        out: The run's folder.

    Raises:
        UserError: Another process writes the run, or there is no such recipe.
    """
    return _extended(look, config, lambda resumed: follow_dose(resumed, candidate, progress), out)


def _extended(look: Look, config: dict[str, Any], work: Callable[[Look], object], out: Path | None) -> Run:
    with runs.begun("look", config, out) as run:
        run.keep_pair(look.base, look.tuned, look.prompts)  # a look that is stopped can be run again on its prompts
        resume(look, run)
        work(look)
        keep(look, run)
    return run


def resume(look: Look, run: Run) -> None:
    """Put what a run holds back into a look."""
    notes = notes_of(run)
    look.notes, look.behaviour, look.recipe_sides = dict(notes.steps), notes.behaviour, dict(notes.candidates)
    look.results = {path.stem: Result.load(path) for path in sorted(run.path.glob("results/*.safetensors"))}
    look.recipes = {path.stem: iv.Recipe.load(path) for path in sorted(run.path.glob("recipes/*.safetensors"))}
    if run.file("tables/candidates.parquet").is_file():
        look.candidates = run.read_table("tables/candidates")
    if CHANGED in look.notes and "answers" not in look.results:
        raise UserError(f"{run.path} says what changed, and its answers are gone: run What changed? again.")


def keep(look: Look, run: Run) -> None:
    """Write everything the look holds into a run that is running."""
    run.keep_pair(look.base, look.tuned, look.prompts)
    for folder in ("results", "recipes"):
        run.file(folder).mkdir(exist_ok=True)
    for name, result in look.results.items():
        result.save(run.file(f"results/{name}.safetensors"))
    for name, recipe in look.recipes.items():
        recipe.save(run.file(f"recipes/{name}.safetensors"), model=look.pair.tuned)
    if look.candidates is not None:
        run.write_table("tables/candidates", look.candidates)
    if TURN in look.notes:
        look.notes[KEEP] = StepNote((kept_sentence(look),), bool(look.recipes))
    notes = LookNotes(look.notes, look.behaviour, look.recipe_sides)
    run.write_json(FILE.removesuffix(".json"), plain(notes))
    run.write_json("sections", [_section(run, look, step) for step in STEPS if step in look.notes])


def _section(run: Run, look: Look, step: str) -> dict[str, Any]:
    """One step: what it found in words, its figures and tables."""
    tables, figures = [], []
    for name in _SHOWN.get(step, ()):
        if name == "candidates" and look.candidates is not None:
            tables.append(name)
        if name not in look.results:
            continue
        result = look.results[name]
        run.write_table(f"tables/{name}", result.held_out if name == "direction" else result.frame())
        tables.append(name)
        if hasattr(result, "figure"):
            run.write_text(f"figures/{name}.json", result.figure().to_json())
            figures.append(name)
    text = "\n\n".join(look.notes[step].telling()) or "Nothing was found."
    return {"title": step, "text": text, "tables": tables, "figures": figures}
