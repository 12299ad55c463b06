"""Whether a step's ``options`` are those of the function that it calls."""

from __future__ import annotations

import dataclasses
from typing import Any

from tunescope.experiments import steps
from tunescope.experiments.strict import MOST, MOST_DRAWS, refusal, unknown

_NEVER = ("seed", "progress", "responses", "refusal", "controls_on", "thresholds", "neutral")
"""What no plain value can give, or what a step has a key for."""


def check_options(step: Any, place: tuple[Any, ...]) -> None:
    """Raise an error with the place of the first option that the step's function does not take."""
    if not getattr(step, "options", None):
        return
    from workbench.behaviour.options import DiffOptions

    taken = {*_NEVER, *type(step).model_fields}
    known = [field.name for field in dataclasses.fields(DiffOptions) if field.name not in taken]
    known += _arguments(step)
    for key in step.options:
        if key not in known:
            raise refusal(unknown(f"option {key!r}", key, known), *place, "options", key)
    _check_bounds(step, place)


def _check_bounds(step: Any, place: tuple[Any, ...]) -> None:
    """Numbers that would be work without end are refused before it begins."""
    for key, value in step.options.items():
        most = MOST_DRAWS if key == "controls" else MOST
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > most:
            raise refusal(f"{_in_short(value)} is more than {most}; give fewer.", *place, "options", key)


def _in_short(value: int) -> str:
    return str(value) if abs(value) < 10**20 else "this number"


def _arguments(step: Any) -> list[str]:
    """Options of the step's function that are arguments of its own."""
    if isinstance(step, steps.Parts):
        return ["batch_size", "knows" if step.by == "known" else "threshold"]
    return ["batch_size"] if isinstance(step, steps.Compared) else []
