"""What a server was doing, in a file beside the runs, so that the next one can tell and resume what was interrupted."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.errors import UserError
from workbench.files import file_text, write_text
from workbench.jsonable import jsonable

_NAME = ".dashboard-jobs-"


@dataclass(frozen=True)
class Order:
    """What a task was asked to do, as plain values from which it can be begun again."""

    kind: str
    """Which kind of task: one of those that :mod:`dashboards.resuming` knows."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interrupted:
    """A task that had not ended."""

    name: str
    page: str = ""
    """The page on which it can be started again."""
    order: Order | None = None
    """What it was asked to do, where it can be resumed."""


class Journal:
    """The unfinished tasks of one server; there is no file while there are none.

    The server locks a file beside its list as long as it lives: a list whose lock is free was left by one that died.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = home / f"{_NAME}{secrets.token_hex(6)}.json"
        self._lock = FileLock(self._file.with_suffix(".lock"), thread_local=False)

    def write(self, unfinished: Sequence[Interrupted]) -> None:
        """Replace the list. Where the folder cannot be written, nothing will be told after a crash."""
        if unfinished:
            try:
                self._home.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                write_text(self._file, json.dumps(jsonable([asdict(task) for task in unfinished])))
            except (OSError, UserError):
                return
        elif self._file.exists():
            self._file.unlink()
            self._lock.release(force=True)
            self._file.with_suffix(".lock").unlink(missing_ok=True)

    def left_behind(self) -> list[Interrupted]:
        """The tasks of servers that were killed; who takes them writes them down again until they are dealt with."""
        tasks: list[Interrupted] = []
        for file in sorted(self._home.glob(f"{_NAME}*.json")):
            lock = FileLock(file.with_suffix(".lock"), thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # its server lives
            tasks += _read(file)
            file.unlink(missing_ok=True)
            lock.release(force=True)
            file.with_suffix(".lock").unlink(missing_ok=True)
        return tasks


def _read(file: Path) -> list[Interrupted]:
    """Nothing where the file is damaged: it only ever told what was going on."""
    try:
        return [_interrupted(row) for row in json.loads(file_text(file))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _interrupted(row: dict[str, Any]) -> Interrupted:
    order = row.get("order")
    return Interrupted(
        str(row["name"]), str(row["page"]), None if order is None else Order(str(order["kind"]), dict(order["options"]))
    )
