"""What a call was given, as plain values: enough, with models, prompts and seed, to make the call again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.prompts.collection import Prompts

APART = ("seed", "progress")
"""Options with no place among the settings: the provenance has a seed of its own, and progress changes no number."""
LONG = 64
"""Longer lists (labels, responses) are named by their hash, as prompts are."""


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
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | range() | np.ndarray() | pd.Series():
            items = [plain(item) for item in value]
            return items if len(items) <= LONG else prompts_hash(items)
        case Path() | slice():
            return str(value)
    return _of_object(value)


def prompts_hash(prompts: Any) -> str | None:
    """A hash of ``prompts``: their own ``hash`` if they have one, else of their rows."""
    if prompts is None:
        return None
    own = getattr(prompts, "hash", None)
    if isinstance(own, str):
        return own
    rows = json.dumps(list(prompts), sort_keys=True, default=str)
    return hashlib.sha256(rows.encode()).hexdigest()


def _of_object(value: Any) -> Any:
    provenance = getattr(value, "provenance", None)
    if provenance is not None:
        return _of_result(provenance)
    identity = getattr(value, "identity", None)
    if identity is not None:
        return plain(identity.to_dict() if hasattr(identity, "to_dict") else identity)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"function {named.__module__}.{named.__qualname__}"
    return str(value)


def _of_result(provenance: Any) -> dict[str, Any]:
    return {name: plain(getattr(provenance, name)) for name in ("probe", "models", "prompts", "seed", "settings")}
