"""The probe results of a run: found by their headers, checked against the manifest, loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import panels
from probes.glance import Glance, glance
from workbench import runs
from workbench.errors import UserError
from workbench.runs.manifest import Manifest, hash_file

if TYPE_CHECKING:
    from probes.results import ProbeResult

PATTERNS = ("result.safetensors", "results/*.safetensors")


@dataclass(frozen=True)
class Found:
    """One result of a run; :meth:`load` reads it."""

    name: str
    """``heads`` for ``results/heads.safetensors``; the run's kind for its only result."""
    path: Path
    sha256: str
    glance: Glance

    @property
    def kind(self) -> str:
        """The class of the result: ``Patching``, ``WeightDelta``, ``ExpertMap``, ..."""
        return self.glance.kind

    @property
    def python(self) -> str:
        """The Python that loads it, as ``result``; add what the panel shows."""
        return f"from probes import ProbeResult\n\nresult = ProbeResult.load({str(self.path)!r})\n"

    def load(self) -> ProbeResult:
        """The result, from memory where another page read it. Do not change it: all tabs share it."""
        return _loaded(str(self.path), self.sha256)

    def provenance(self) -> dict[str, Any]:
        """For the JSON export: the file, its hash, and what made the result."""
        from dataclasses import asdict

        return {"file": str(self.path), "sha256": self.sha256, **asdict(self.load().provenance)}


def results_in(folder: Path, *kinds: str, models: tuple[str, str] | None = None) -> list[Found]:
    """Results of an ended run, by name; of these ``kinds`` (class names), of this pair of ``models``, where given.

    One that is damaged, or not the file that the run ended with, is told on the page and left out.
    """
    run = runs.open(folder)
    found = []
    for path in (path for pattern in PATTERNS for path in sorted(run.path.glob(pattern))):
        name = path.relative_to(run.path).as_posix()
        with panels.told():
            entry = run.manifest.files.get(name)
            if entry is None:
                continue
            seen = _glanced(str(run.file(name)), entry.sha256, path.stat().st_mtime_ns)
            if seen is not None and (not kinds or seen.kind in kinds) and _made_of(seen, models):
                found.append(Found(_name(name, run.manifest), path, entry.sha256, seen))
    return found


def _made_of(seen: Glance, models: tuple[str, str] | None) -> bool:
    """Whether every model of the result is one of the pair; names are those of the provenance."""
    return models is None or set(seen.models.values()) <= set(models)


def _name(file: str, manifest: Manifest) -> str:
    return manifest.kind if "/" not in file else Path(file).stem.replace("_", " ")


@st.cache_data(max_entries=512, show_spinner=False)
def _glanced(path: str, sha256: str, changed: int) -> Glance | None:  # noqa: ARG001 (part of the cache's key)
    if hash_file(Path(path)).sha256 != sha256:
        raise UserError(f"{path} is not the file that the run ended with; see  tunescope runs verify  and run again.")
    return glance(path)


@st.cache_resource(max_entries=64, show_spinner="Reading the result…")
def _loaded(path: str, sha256: str) -> ProbeResult:
    from probes.results import ProbeResult

    if hash_file(Path(path)).sha256 != sha256:
        raise UserError(f"{path} changed since the run ended; see  tunescope runs verify  and run again.")
    return ProbeResult.load(path)
