"""What the four steps are about: a pair, the look at it that is shown, and how far its steps are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashboards import jobs
from dashboards.selection import Selection
from dashboards.state import Opened, known_runs
from tunescope.look.notes import STEPS, LookNotes, notes_of
from workbench import runs
from workbench.errors import UserError
from workbench.runs import Run
from workbench.runs.places import whole_path
from workbench.runs.workspace import beside

DETAILS = {step: number for number, step in enumerate(STEPS, 1)}
"""Step -> its number, as links have it."""


@dataclass(frozen=True)
class Subject:
    """A pair of models, and the run of ``tunescope look`` about it."""

    base: str
    tuned: str
    run: Run | None = None
    notes: LookNotes = field(default_factory=LookNotes)

    @property
    def key(self) -> tuple[str, str]:
        """How a job says that it is about this pair."""
        return whole_path(self.base), whole_path(self.tuned)

    def state(self, step: str) -> str:
        """not run, waiting, running, found, or nothing beyond the control."""
        for job in jobs.desk().active:
            if job.about == self.key and job.stage == step:
                return job.state
        return self.notes.state(step)

    def table(self, name: str) -> Any:
        """A table of the run. Raises :class:`UserError` where it is damaged; None where there is none yet."""
        if self.run is None or not self.run.file(f"tables/{name}.parquet").is_file():
            return None
        return self.run.read_table(f"tables/{name}")


def subject_of(selection: Selection) -> Subject:
    """The selected run where it is a look; else the latest look at the same pair; else the pair alone."""
    opened = Opened.from_environment()
    base, tuned = (selection.base, selection.tuned) if selection.base else (opened.base, opened.tuned)
    if selection.folder is None:
        return Subject(base, tuned)
    for folder in (selection.folder, *beside(selection.folder)):
        if (run := _look(folder)) is not None:
            return Subject(base, tuned, run, notes_of(run))
    return Subject(base, tuned)


def name_of(run: Run) -> str:
    """The name under which the app knows the run."""
    known = known_runs()
    return next((name for name, folder in known.items() if folder.resolve() == run.path.resolve()), run.name)


def _look(folder: Path) -> Run | None:
    try:
        run = runs.open(folder)
    except UserError:
        return None
    return run if run.manifest.kind == "look" else None
