"""Files that a run was given, for an experiment that reads them again: they must be there, and be what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.runs import Run
from workbench.runs.places import PROMPTS, whole_path


def own_prompts(run: Run, path: str) -> dict[str, Any]:
    """The prompts that the run keeps, else the file that it was given."""
    if PROMPTS in run.manifest.files:
        return {"file": str(run.file(PROMPTS).resolve())}
    if not path or not Path(path).is_file():
        raise UserError(
            f"{run.path} keeps no prompts, and {path or 'no file of them'!r} is not here: run it again, or write the "
            "experiment with your own."
        )
    return {"file": whole_path(path)}


def further_prompts(run: Run, name: str, digest: str | None) -> dict[str, Any]:
    """A file of prompts that the run was given besides its own, of which it keeps the hash alone.

    Raises :class:`UserError` where the file is gone, or its rows are no longer those of ``digest``.
    """
    path = Path(given_file(run, name, "prompts"))
    if digest is not None and Prompts.load(path).hash != digest:
        raise UserError(
            f"{path} holds other prompts than when {run.path} was made: put the old rows back, or run "
            "the command again."
        )
    return {"file": str(path)}


def given_file(run: Run, name: str, what: str) -> str:
    """The whole path of a file that the run was given and keeps no copy of."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"{run.path} was made with the {what} in {name!r}, which is not here: start where the command was run, or "
            "put the file back."
        )
    return str(path.resolve())


def hash_in(settings: Mapping[str, Any], place: Sequence[str]) -> str | None:
    """The hash that a result's settings hold at ``place``; None where they hold none."""
    at: Any = settings
    for key in place:
        at = at.get(key) if isinstance(at, Mapping) else None
    return at if isinstance(at, str) else None


def settings_of(run: Run, file: str) -> Mapping[str, Any]:
    """The settings of a result of the run; empty where it has none."""
    if file not in run.manifest.files:
        return {}
    from workbench.results import Result

    return Result.load(run.file(file)).provenance.settings
