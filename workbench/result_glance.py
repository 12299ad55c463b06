"""What a result file is, without importing torch: its kind, its models and how far its cells reach."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from workbench.cells import AXES
from workbench.errors import UserError


@dataclass(frozen=True)
class Glance:
    """The header of a result."""

    kind: str
    """The class: ``Patching``, ``WeightDelta``, ..."""
    models: dict[str, str]
    """Role -> name, as its provenance has it."""
    n_prompts: int
    sizes: dict[str, int]
    """``layer``, ``head``, ``expert`` -> one more than the largest in the table; absent where the table has none."""


def glance(path: str | Path) -> Glance | None:
    """The header of the result at ``path``; None for a file that holds no result (a recipe, say).

    Raises :class:`UserError` for a file that cannot be read.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            content = json.loads((file.metadata() or {}).get("tunescope", "{}"))
            if not isinstance(content, dict) or "kind" not in content:
                return None
            fields = content["fields"]
            made = _plain(fields["provenance"])
            columns = dict(fields["table"]["$table"])
            sizes = {name: _size(file.get_tensor(columns[name]["tensor"])) for name in AXES if name in columns}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a readable result ({type(error).__name__}: {str(error)[:120]}); run the probe again."
        ) from error
    names = {
        role: str(model.get("name", "")) if isinstance(model, dict) else str(model)
        for role, model in made["models"].items()
    }
    return Glance(
        str(content["kind"]).rpartition(":")[2], names, int(made.get("n_prompts") or 0),
        {name: size for name, size in sizes.items() if size},
    )  # fmt: skip


def models_of(path: str | Path) -> dict[str, Any]:
    """Role -> identity of the models that a result's header names; empty for a file that holds no result.

    Raises :class:`UserError` for a file that cannot be read.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            content = json.loads((file.metadata() or {}).get("tunescope", "{}"))
        models = _plain(_plain(content["fields"]["provenance"])["models"]) if "fields" in content else {}
        return {str(role): _plain(identity) for role, identity in models.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable result ({type(error).__name__}).") from error


def _plain(value: Any) -> Any:
    """The storage form of dicts, tuples and lists as plain values."""
    if isinstance(value, dict) and len(value) == 1:
        ((mark, content),) = value.items()
        if mark == "$dict":
            return {key: _plain(item) for key, item in content}
        if mark == "$tuple":
            return [_plain(item) for item in content]
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _size(values: np.ndarray) -> int:
    numbers = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return int(numbers.max()) + 1 if numbers.size and numbers.max() >= 0 else 0
