"""The probe results of a run: found by their headers, checked against the manifest, loaded once."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import models, panels
from workbench import runs
from workbench.errors import UserError
from workbench.result_glance import Glance, glance
from workbench.runs.manifest import hash_file
from workbench.runs.places import inside

PATTERNS = ("result.safetensors", "results/*.safetensors", "steps/*/result.safetensors")
"""Of one probe, of several, of the steps of an experiment."""


@dataclass(frozen=True)
class StoredResult:
    """One result of a run; :meth:`load` reads it."""

    name: str
    """``heads`` for ``results/heads.safetensors``; the run's kind for its only result; the step's name, with its key
    where the step was done several times."""
    file: str
    """Its path inside the run."""
    path: Path
    sha256: str
    glance: Glance
    step: str = ""
    """The step of the experiment that made it, where that is not its name."""
    run: Path | None = None
    """The folder of the run that holds it, where that is not the selected one."""

    @property
    def kind(self) -> str:
        """The class of the result: ``Patching``, ``WeightDelta``, ``ExpertMap``, ..."""
        return self.glance.kind

    @property
    def python(self) -> str:
        """The Python that loads it, as ``result``; add what the panel shows."""
        return f"from workbench.results import Result\n\nresult = Result.load({str(self.path)!r})\n"

    def called(self, pair: str) -> StoredResult:
        """The same without the name of its pair: ``refusal-moe-weights`` is the ``weights`` of refusal-moe."""
        return replace(self, name=self.name.removeprefix(f"{pair}-"))

    def load(self) -> Any:
        """The result, from memory where another page read it. Do not change it: all tabs share it."""
        return _loaded(str(self.path), self.sha256)

    def provenance(self) -> dict[str, Any]:
        """For the JSON export: the file, its hash, and what made the result."""
        return {"file": str(self.path), "sha256": self.sha256, **asdict(self.load().provenance)}


def results_in(folder: Path, *kinds: str) -> list[StoredResult]:
    """Results of an ended run, by name; of these ``kinds`` (class names), where given.

    One that is damaged, or not the file that the run ended with, is told on the page and left out.
    """
    run = runs.open(folder)
    results = []
    for path in (path for pattern in PATTERNS for path in sorted(run.path.glob(pattern))):
        file = path.relative_to(run.path).as_posix()
        if path.name.startswith("."):
            continue  # half written
        entry = hash_file(path) if run.state == "running" else run.manifest.files.get(file)
        if entry is None:
            continue
        with panels.errors_shown():
            seen = _glanced(run.path, file, entry.sha256, path.stat().st_mtime_ns)
            if seen is not None and (not kinds or seen.kind in kinds):
                name = run.manifest.kind if "/" not in file else path.stem.replace("_", " ")
                results.append(StoredResult(name, file, path, entry.sha256, seen))
    return _by_step(results)


def _by_step(results: list[StoredResult]) -> list[StoredResult]:
    """Results of an experiment are called as their steps are: ``steps/heads-0123456789`` is ``heads``."""
    folders = {result.file: result.path.parent.name for result in results if result.file.startswith("steps/")}
    counts = Counter(_step(folder) for folder in folders.values())
    return [_named(result, folders[result.file], counts) if result.file in folders else result for result in results]


def _named(result: StoredResult, folder: str, counts: Counter[str]) -> StoredResult:
    step = _step(folder)
    return replace(result, step=step, name=step if counts[step] == 1 else folder)


def _step(folder: str) -> str:
    return folder.rpartition("-")[0]


@lru_cache(maxsize=1 << 14)
def _glanced(folder: Path, file: str, sha256: str, changed: int) -> Glance | None:  # noqa: ARG001 (part of the key)
    path = inside(folder, file)
    if hash_file(path).sha256 != sha256:
        raise UserError(f"{path} is not the file that the run ended with; see  tunescope runs verify  and run again.")
    return glance(path)


def _load(path: str, sha256: str) -> Any:
    models.warm().wait("results")
    from workbench.results import Result

    if hash_file(Path(path)).sha256 != sha256:
        raise UserError(f"{path} changed since the run ended; see  tunescope runs verify  and run again.")
    try:
        with models.warm().importing():  # of the probe that made it, which may need transformers
            return Result.load(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no whole result ({type(error).__name__}); run the probe again.") from error


_loaded = st.cache_resource(max_entries=64, show_spinner="Reading the result…")(_load)
