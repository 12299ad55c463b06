"""Long work is listed from its first moment: the run is there before the work begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.files import write_bytes
from workbench.finished_batches import resumable
from workbench.runs.folder import Run, create_run, create_run_at
from workbench.runs.manifest import MANIFEST, file_names
from workbench.runs.places import BATCHES, default_home


@contextmanager
def begun(kind: str, config: Mapping[str, Any], out: str | Path | None = None) -> Iterator[Run]:
    """A run that is running inside the context, and complete after it; killed in between, it is listed as interrupted.

    What is written in the context stays after an error, and the run is failed or interrupted; so do the finished
    batches of the work (:mod:`workbench.finished_batches`), from which the same call goes on. When a
    :class:`UserError` leaves the context before anything was written (a refusal before any work), a run that was made
    here is removed again, and one that was complete stays complete.

    Example:
        >>> with begun("heads", {"base": "b", "tuned": "t"}, out="runs/heads") as run:
        ...     result = probe()
        ...     result.save(run.file("result.safetensors"))

    Args:
        kind: which command makes it.
        config: what was asked for; the same again goes on with, or repeats, the same run.
        out: its folder; None: one in the runs' home, named by the configuration.

    Raises:
        UserError: the folder holds another run, or another process writes it.
    """
    home = default_home() if out is None else Path(out).absolute().parent
    before = {path for path in home.glob(f"*/{MANIFEST}")} if home.is_dir() else set()
    run = create_run(home, kind=kind, config=config) if out is None else create_run_at(out, kind=kind, config=config)
    fresh = run.path / MANIFEST not in before
    run.hold()
    complete, files = (run.path / MANIFEST).read_bytes() if run.is_complete else None, _files(run)
    try:
        if run.is_complete:
            run.reopen()
    except UserError:
        run.let_go()
        raise
    try:
        with run, resumable(run.file(BATCHES)):
            yield run
    except UserError:
        if fresh and not file_names(run.path):
            shutil.rmtree(run.path)
        elif complete is not None and _files(run) == files:
            write_bytes(run.path / MANIFEST, complete)
        raise


def _files(run: Run) -> dict[str, tuple[int, int]]:
    """Size and time of each file of the run."""
    stats = {name: (run.path / name).lstat() for name in file_names(run.path)}
    return {name: (seen.st_size, seen.st_mtime_ns) for name, seen in stats.items()}
