"""What the dashboard was opened on, and the runs it may show."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from workbench import runs
from workbench.errors import UserError
from workbench.runs import Run
from workbench.runs.manifest import hash_file

RUN, BASE, TUNED = "TUNESCOPE_OPEN_RUN", "TUNESCOPE_OPEN_BASE", "TUNESCOPE_OPEN_TUNED"
"""Environment variables through which ``tunescope dashboard`` tells the app what to open."""
WARM = "TUNESCOPE_WARM"
"""Asks a server to import model code ahead of the first click."""
_HEADER = 8
_LONGEST_HEADER = 10_000_000


@dataclass(frozen=True)
class Opened:
    """A run, or a pair of models, or nothing."""

    run: Path | None = None
    base: str = ""
    tuned: str = ""

    @classmethod
    def from_environment(cls) -> Opened:
        """What the command line asked for."""
        run = os.environ.get(RUN)
        return cls(Path(run) if run else None, os.environ.get(BASE, ""), os.environ.get(TUNED, ""))

    def as_environment(self) -> dict[str, str]:
        """The variables that :meth:`from_environment` reads."""
        values = {RUN: str(self.run.resolve()) if self.run else "", BASE: self.base, TUNED: self.tuned}
        return {name: value for name, value in values.items() if value}


def first_page() -> str:
    """The page that the app opens on: the four steps of a pair, or the overview of a run that is no look."""
    opened = Opened.from_environment()
    if opened.run is None:
        return "look" if opened.base else "overview"
    try:
        return "look" if runs.open(opened.run).manifest.kind == "look" else "overview"
    except UserError:
        return "overview"


def known_runs() -> dict[str, Path]:
    """Name -> folder: the run that was opened first, then those of the home, the latest first.

    Only these are ever read, so a link cannot name a folder elsewhere.
    """
    opened = Opened.from_environment().run
    folders = {} if opened is None else {opened.name: opened}
    for run in runs.list():
        if opened is None or run.path.resolve() != opened.resolve():
            folders.setdefault(run.name, run.path)
    return folders


@dataclass(frozen=True)
class RecipeNote:
    """What the header of a recipe file says."""

    kinds: tuple[str, ...]
    """Its interventions."""
    model: str
    """The model it was made on, where it says."""


def recipes_of(folder: Path) -> dict[str, RecipeNote]:
    """The recipe files a run ended with, by name; no tensor is read."""
    run = runs.open(folder)
    names = [name for name in sorted(run.manifest.files) if name.endswith(".safetensors")]
    notes = {name: _recipe_note(run.file(name)) for name in names}
    return {name: note for name, note in notes.items() if note is not None}


def verified(run: Run, name: str) -> Path:
    """The path of a run's file. Raises :class:`UserError` when it is not the file the run ended with."""
    path, entry = run.file(name), run.manifest.files.get(name)
    if run.state == "running" and path.is_file():
        return path  # its files are hashed when it ends
    if entry is None or not path.is_file() or hash_file(path) != entry:
        raise UserError(f"{path} is not the file that the run ended with; see  tunescope runs verify {run.path}.")
    return path


def _recipe_note(path: Path) -> RecipeNote | None:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_HEADER), "little")
            if not 0 < size <= _LONGEST_HEADER:
                return None
            note = json.loads(json.loads(file.read(size))["__metadata__"]["tunescope"])
        kinds = tuple(str(intervention["kind"]) for intervention in note["interventions"])
        model = (note.get("made_with") or {}).get("model") or {}
        return RecipeNote(kinds, str(model.get("name", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
