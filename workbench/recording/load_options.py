"""How a recording's models were loaded, as its run keeps it, so that another can load them so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.files import room_for_folder
from workbench.models.loading import resolve_dtype
from workbench.runs.folder import Run, create_run, create_run_at, open_run
from workbench.runs.manifest import MANIFEST
from workbench.runs.places import default_home

LOAD_OPTIONS = (
    "device", "dtype", "device_map", "attn_implementation", "tokenizer", "template", "own_generation_config",
    "allow_pickle", "trust_remote_code", "backend",
)  # fmt: skip
"""Keys of a run's configuration; one that is absent has its default."""
_DEFAULTS = (None, False, "auto", "hooks", "tuned")


def load_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``options`` (those of :func:`workbench.load_pair`, and ``backend``) is not as it is by default, plain."""
    named = {name: options[name] for name in LOAD_OPTIONS if options.get(name) not in _DEFAULTS}
    if "dtype" in named:
        named["dtype"] = resolve_dtype(named["dtype"])
    return {name: _plain(value) for name, value in named.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value).removeprefix("torch.")
    return type(value).__name__


def open_recording(out: str | Path | None, config: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
    """The run of this recording, new or to go on with; its models were loaded with ``options``.

    A run that keeps no options was loaded with the default ones, or made before they were kept: it is told apart by
    its models' hashes, which also say their dtype.
    """
    if out is None:
        return create_run(default_home(), None, kind="record", config={**config, **options})
    path = Path(out)
    wanted = {**config, **({} if _keeps_none(path) else options)}
    return create_run_at(path, kind="record", config=wanted)


def _keeps_none(path: Path) -> bool:
    with room_for_folder(path):
        there = (path / MANIFEST).exists()
    return there and not set(LOAD_OPTIONS) & set(open_run(path).config)
