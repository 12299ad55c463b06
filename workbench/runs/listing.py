"""The runs below a folder, also those that cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from workbench.errors import UserError
from workbench.runs.manifest import MANIFEST, read_manifest
from workbench.runs.places import default_home


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs."""

    name: str
    """Path below the home."""
    path: Path
    kind: str
    state: str
    """running, interrupted, complete, failed, or unreadable."""
    size: int
    """Bytes of all files in the manifest."""
    modified: datetime
    """When the manifest was last written (UTC)."""
    problem: str | None = None
    """Why a run failed or cannot be read."""


def list_runs(home: str | Path | None = None) -> list[RunSummary]:
    """Every run below ``home`` (default: :func:`default_home`), the latest first; a missing home has none."""
    top = Path(home) if home is not None else default_home()
    summaries = []
    for folder, below, files in os.walk(top):
        if MANIFEST in files:
            below.clear()
            summaries.append(_summary(top, Path(folder)))
    return sorted(summaries, key=lambda run: (run.modified, run.name), reverse=True)


def _summary(home: Path, folder: Path) -> RunSummary:
    name = folder.relative_to(home).as_posix().encode("utf-8", errors="replace").decode("utf-8")
    try:
        modified = datetime.fromtimestamp((folder / MANIFEST).lstat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError) as error:  # deleted meanwhile, or a time that no calendar has
        return RunSummary(name, folder, "?", "unreadable", 0, datetime.fromtimestamp(0, UTC), str(error))
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return RunSummary(name, folder, "?", "unreadable", 0, modified, str(error))
    size = sum(entry.size for entry in manifest.files.values())
    return RunSummary(name, folder, manifest.kind, manifest.state, size, modified, manifest.error)
