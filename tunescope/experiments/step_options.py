"""Whether a step's ``options`` are those of the function that it calls."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from tunescope.experiments import steps
from tunescope.experiments.strict import MOST, MOST_DRAWS, refusal, unknown

_BENCH = ("seed", "progress")
"""What every probe is given here."""
_NEVER = {*_BENCH, "responses", "refusal", "controls_on", "thresholds", "neutral"}
"""What no plain value can give, or what a step has a key for."""


def check_options(step: Any, place: tuple[Any, ...]) -> None:
    """Raise an error with the place of the first option that the step's function does not take."""
    if isinstance(step, steps.Probe):
        _check_call(step, place)
        return
    if not getattr(step, "options", None):
        return
    taken = {*_NEVER, *type(step).model_fields}
    known = [field.name for field in dataclasses.fields(_options_of(step)) if field.name not in taken]
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


def _check_call(step: steps.Probe, place: tuple[Any, ...]) -> None:
    """The options of a probe called by name; those that it passes on are checked by itself."""
    import probes

    first, _, *own = inspect.signature(getattr(probes, step.call)).parameters.values()
    if first.name == "pair" and step.within != "pair":
        raise refusal(f"{step.call} compares both models; leave within out.", *place, "within")
    _check_sets(step, place)
    _check_bounds(step, place)
    known = [one.name for one in own if one.kind is not one.VAR_KEYWORD and one.name not in _BENCH]
    for key in step.options:
        if key not in known and len(known) == len([one for one in own if one.name not in _BENCH]):
            raise refusal(unknown(f"option {key!r}", key, known), *place, "options", key)
    for one in own:
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD and one.name not in step.options:
            raise refusal(f"{step.call} needs {one.name}; give it under options.", *place)


def _check_sets(step: steps.Probe, place: tuple[Any, ...]) -> None:
    """Options that are prompts stand under ``sets``, and no others."""
    prompts = steps.PROMPT_OPTIONS.get(step.call, ())
    for key in step.options:
        if key in prompts:
            raise refusal(f"{key} is prompts: name a set of them under sets.", *place, "options", key)
    for key in step.sets:
        if key not in prompts:
            told = f"known: {', '.join(prompts)}" if prompts else f"{step.call} takes no further prompts"
            raise refusal(f"{key!r} is no option that is prompts; {told}.", *place, "sets", key)


def _options_of(step: Any) -> Any:
    """The dataclass of the options that the step's function takes."""
    if isinstance(step, steps.Skills):
        from probes.grafting.search import Settings

        return Settings
    if isinstance(step, steps.Experts):
        from probes.experts.mapping import MapOptions

        return MapOptions
    if isinstance(step, steps.Switching):
        from probes.experts.switching import SwitchOptions

        return SwitchOptions
    if isinstance(step, steps.Knob):
        from probes import KnobSetup

        return KnobSetup
    if isinstance(step, steps.Heads):
        from probes.patches.patching import PatchOptions

        return PatchOptions
    if isinstance(step, steps.Components):
        from probes.desiderata.masking import MaskingOptions

        return MaskingOptions
    from workbench.behaviour.options import DiffOptions

    return DiffOptions
