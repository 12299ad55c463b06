"""What a call was asked for, as plain values: enough, with models, prompts and seed, to make the call again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probes.results import ProbeResult, Provenance
from workbench.prompts.collection import Prompts
from workbench.recording.recording import Recording
from workbench.results import prompts_hash

APART = ("seed", "progress")
"""Options with no place among the settings: the provenance has a seed of its own, and progress changes no number."""
LONG = 64
"""Longer lists (labels, responses) are named by their hash, as prompts are."""
_OF_A_RECORDING = ("sites", "positions", "dtype", "new_tokens", "batch_size")


def call_settings(options: Any, **more: Any) -> dict[str, Any]:
    """Every field of the dataclass ``options`` and every further argument, by the names the call has for them."""
    fields = (
        {} if options is None else {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    )
    return {name: plain(value) for name, value in {**fields, **more}.items() if name not in APART}


def plain(value: Any) -> Any:
    """``value`` as text, numbers, lists and dicts. Data is named by its hash, a model by its identity, a function by
    its name, and another result by its own provenance."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case Prompts():
            return value.hash
        case pd.DataFrame():
            return hashlib.sha256(value.to_csv().encode()).hexdigest()
        case ProbeResult():
            return _of_result(value.provenance)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | range() | np.ndarray() | pd.Series():
            items = [plain(item) for item in value]
            return items if len(items) <= LONG else prompts_hash(items)
        case Path() | slice():
            return str(value)
    return _of_object(value)


def _of_object(value: Any) -> Any:
    identity = getattr(value, "identity", None)
    if identity is not None:
        return plain(identity.to_dict() if hasattr(identity, "to_dict") else identity)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"function {named.__module__}.{named.__qualname__}"
    return str(value)


def _of_result(made: Provenance) -> dict[str, Any]:
    kept = ("probe", "models", "prompts", "seed", "settings")
    return {name: plain(getattr(made, name)) for name in kept}


def of_recording(
    probe: str, recording: Recording, roles: tuple[str, ...], settings: Mapping[str, Any], seed: int
) -> Provenance:
    """The provenance of what was read from a recording: its models and prompts, and in the settings where and how they
    were recorded."""
    config = recording.config
    models = config.get("models", {})
    recorded = {name: config[name] for name in _OF_A_RECORDING if name in config}
    return Provenance(
        probe=probe,
        models={role: models.get(role, role) for role in roles},
        prompts=config.get("prompts"),
        n_prompts=recording.n_prompts,
        seed=seed,
        settings={"recording": plain(recorded), **settings},
    )
