"""A look as a notebook: the pair, its answers, what the steps found, and the best recipe applied."""

from __future__ import annotations

import json
from typing import Any

from dashboards.model_names import short
from dashboards.steps.subject import Subject
from dashboards.steps.turn import parts_of
from tunescope.look.notes import STEPS
from workbench.runs.places import PROMPTS


def look_notebook(subject: Subject) -> str:
    """The notebook as JSON (nbformat 4.5); its code cells run from the top, offline, where the run and the models lie.

    Args:
        subject: A pair with a look.

    Returns:
        What a file ``look.ipynb`` holds.
    """
    assert subject.run is not None
    run = subject.run
    cells = [
        _text([f"# {short(subject.base)} → {short(subject.tuned, subject.base)}", *_findings(subject)]),
        _code(
            "import interventions as iv\nimport probes\nimport workbench as wb\nfrom workbench import runs\n"
            "from workbench.prompts import Prompts\nfrom workbench.results import Result\n\n"
            f"pair = wb.load_pair({subject.base!r}, {subject.tuned!r})\n"
            f"run = runs.open({str(run.path)!r})\nprompts = Prompts.load(run.file({PROMPTS!r}))"
        ),
        _text(["## What changed?"]),
        _code(
            "answers = probes.answers(pair, prompts, max_new_tokens=16)\nprint(answers.summary())\n"
            "answers.frame()[['prompt', 'base', 'tuned', 'kl']]"
        ),
    ]
    names = [
        name
        for name in ("layers", "heads", "weights", "activations", "lens")
        if run.file(f"results/{name}.safetensors").is_file()
    ]
    if names:
        cells.append(_text(["## Where?"]))
    cells += [_code(f"Result.load(run.file('results/{name}.safetensors')).figure()") for name in names]
    cells += _turning(subject)
    cells = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)]
    return json.dumps({"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def _findings(subject: Subject) -> list[str]:
    notes = subject.notes.steps
    return [f"- {step} {sentence}" for step in STEPS if step in notes for sentence in notes[step].sentences]


def _turning(subject: Subject) -> list[dict[str, Any]]:
    """The candidates, and the best one that is a file applied to the tuned model."""
    assert subject.run is not None
    table = subject.table("candidates")
    if table is None:
        return []
    cells = [_text(["## Turn it."]), _code("run.read_table('tables/candidates')")]
    best = next((name for name, (_, side) in parts_of(subject, table).items() if side == "tuned"), None)
    if best is not None:
        cells.append(_code(
            f"recipe = iv.Recipe.load(run.file('recipes/{best}.safetensors'))\nwith recipe.applied(pair.tuned):\n"
            "    steered = pair.tuned.generate(prompts[:4], max_new_tokens=16)\nsteered"
        ))  # fmt: skip
    return cells


def _text(lines: list[str]) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": "\n\n".join(lines)}


def _code(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": source, "execution_count": None, "outputs": []}


_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
