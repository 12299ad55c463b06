"""Where runs and their files may lie: below their folder, however the name is written."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from workbench.errors import UserError

HOME_VARIABLE = "TUNESCOPE_RUNS"
PROMPTS = "prompts/prompts.jsonl"
"""Where a run keeps its prompts."""
BATCHES = "batches"
"""Where a run that is not complete keeps the finished batches of its work."""


def default_home() -> Path:
    """The folder of the environment variable ``TUNESCOPE_RUNS``, else ``./runs``."""
    return Path(os.environ.get(HOME_VARIABLE) or "runs")


def place_of_run(place: str | Path, home: Path | None = None) -> Path:
    """The folder a person means: a path to it, or a name in ``home``, which it may not leave.

    Raises :class:`UserError` when there is neither.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; give the run's folder.")
    if path.is_absolute():
        raise UserError(f"There is no such folder: {path}.")
    named = inside(home or default_home(), str(place))
    if not named.is_dir():
        raise UserError(
            f"There is no such folder: neither {path} nor {named}; `tunescope runs list` shows what there is."
        )
    return named


def whole_path(name: str) -> str:
    """A folder or file that is here as its whole path, which holds from everywhere; else as it is, a hub id."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` below ``folder``.

    Raises :class:`UserError` for a name that leaves it: absolute, with ``..``, or through a link.
    """
    pure = PurePosixPath(name)
    bad = not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts
    if bad or pure == PurePosixPath("."):
        raise UserError(f"{name!r} is no name inside {folder}; give a plain relative name without '..'.")
    path = folder / pure
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{name!r} leads out of {folder} through a link; runs keep their files below their folder.")
    return path
