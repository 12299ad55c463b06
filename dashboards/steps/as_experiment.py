"""A look as the experiment file that makes its results again."""

from __future__ import annotations

from typing import Any

from dashboards.as_experiment import computed_steps
from dashboards.steps.subject import Subject
from workbench.runs.places import PROMPTS


def look_experiment(subject: Subject) -> str:
    """The YAML: the answers, the change of the weights, and the direction where one was found."""
    assert subject.run is not None
    run = subject.run
    steps: dict[str, dict[str, Any]] = {}
    for name, call in (("answers", "answers"), ("weights", "weight_delta"), ("direction", "find_direction")):
        if run.file(f"results/{name}.safetensors").is_file():
            options = {"behaviour": subject.notes.behaviour, "limit": 8, "candidates": 4, "max_new_tokens": 12}
            steps[name] = {"do": "probe", "call": call, "options": options if name == "direction" else {}}
    if "answers" in steps:
        steps["answers"]["options"] = {"max_new_tokens": 16}
    rows = {"file": str(run.file(PROMPTS).resolve())}
    return computed_steps((subject.base, subject.tuned), rows, "look", steps)
