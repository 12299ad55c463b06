"""What a run of ``tunescope diff`` has finished, so that the same command goes on behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from workbench.errors import UserError
from workbench.finished_batches import scope
from workbench.results import Result
from workbench.runs import Run

Kind = TypeVar("Kind", bound=Result)


def result_file(chapter: str) -> str:
    """Where a run holds the result of a chapter."""
    return f"results/{chapter}.safetensors"


class FinishedChapters:
    """The results that a run holds already, of the same models, files and packages."""

    def __init__(self, run: Run, basis: Mapping[str, Any]) -> None:
        self._run, self._basis = run, basis
        self._same = run.manifest.provenance.get("basis") == json.loads(json.dumps(basis))
        run.note(basis=basis)

    def result(self, chapter: str, kind: type[Kind], make: Callable[[], Kind]) -> Kind:
        """The result of one chapter: as the run holds it, or made now and written at once.

        Args:
            chapter: its name.
            kind: its class.
            make: what computes it.
        """
        path = self._run.file(result_file(chapter))
        if self._same and path.is_file():
            with suppress(UserError):  # damaged: made again
                return kind.load(path)
        with scope(lambda: [self._basis, chapter]):
            result = make()
        result.save(path)
        return result
