"""A look as a run: results, recipes, prompts, and the four steps as sections that report and dashboard show."""

from __future__ import annotations

from typing import Any

from tunescope.look.steps import Look
from workbench.runs import Run

STEPS = ("What changed?", "Where?", "Turn it.", "Keep it.")
_SHOWN = {"What changed?": ("answers",), "Where?": ("weights", "layers", "heads"), "Turn it.": ("adapter", "direction")}
"""Step -> the results that its section shows."""


def keep(look: Look, run: Run) -> None:
    """Fill the run that was begun before the look."""
    run.keep_pair(look.base, look.tuned, look.prompts)
    for folder in ("results", "recipes"):
        run.file(folder).mkdir(exist_ok=True)
    for name, result in look.results.items():
        result.save(run.file(f"results/{name}.safetensors"))
    for name, recipe in look.recipes.items():
        recipe.save(run.file(f"recipes/{name}.safetensors"), model=look.pair.tuned)
    run.write_json("sections", [_section(run, look, step) for step in STEPS])


def _section(run: Run, look: Look, step: str) -> dict[str, Any]:
    """One step: what it found in words, its tables and figures."""
    tables, figures = [], []
    for name in _SHOWN.get(step, ()):
        if name not in look.results:
            continue
        result = look.results[name]
        table = result.held_out if name == "direction" else result.frame()
        run.write_table(f"tables/{name}", table)
        tables.append(name)
        if hasattr(result, "figure"):
            run.write_text(f"figures/{name}.json", result.figure().to_json())
            figures.append(name)
    told = [sentence for said, sentence in look.told if said == step]
    if step == "Keep it.":
        told = [f"Recipe recipes/{name}.safetensors: tunescope steer BASE --tuned TUNED --recipe ..."
                for name in look.recipes] or ["No recipe was made."]  # fmt: skip
    text = "\n\n".join(told) or "Nothing was found."
    return {"title": step, "text": text, "tables": tables, "figures": figures}
