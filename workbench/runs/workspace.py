"""Workspaces: everything that runs below a home hold about one pair, told by the hashes of its weights.

A workspace is an index over plain run folders. Its file is a cache: where it is lost, damaged or behind, it is made
again from the runs, and two processes that write it at once lose nothing but time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.files import file_text, write_text
from workbench.runs.listing import RunSummary, list_runs
from workbench.runs.manifest import MANIFEST, read_manifest
from workbench.runs.places import default_home

INDEX = ".workspaces.json"
_RESULTS = ("result.safetensors", "results/*.safetensors", "steps/*/result.safetensors")
_VERSION = 1


@dataclass(frozen=True)
class PairKey:
    """A base and a tuned model by the hashes of their weights."""

    base: str
    tuned: str

    @property
    def name(self) -> str:
        """A short name, as runs and links carry it."""
        return hashlib.sha256(f"{self.base} {self.tuned}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Workspace:
    """The runs about one pair, the latest first."""

    pair: PairKey
    runs: tuple[RunSummary, ...] = field(default_factory=tuple)


def workspaces(home: str | Path | None = None) -> list[Workspace]:
    """Every pair that the runs below ``home`` are about, the one with the latest run first.

    Args:
        home: The folder of the runs; default ``TUNESCOPE_RUNS`` or ``./runs``.
    """
    top = Path(home) if home is not None else default_home()
    runs: dict[PairKey, list[RunSummary]] = {}
    for run, pairs in _indexed(top):
        for pair in pairs:
            runs.setdefault(pair, []).append(run)
    return [Workspace(pair, tuple(held)) for pair, held in runs.items()]


def beside(folder: Path, home: str | Path | None = None) -> list[Path]:
    """The other runs below ``home`` that are about a pair of the run in ``folder``, the latest first."""
    own = set(pairs_in(folder))
    top = Path(home) if home is not None else default_home()
    here = folder.resolve()
    return [run.path for run, pairs in _indexed(top) if own & set(pairs) and run.path.resolve() != here]


def pairs_in(folder: Path) -> list[PairKey]:
    """The pairs that a run's recordings and results name; none for a run that cannot be read."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return []
    named = [_key(manifest.config), _key(manifest.config.get("models"))]
    named += [_key(_models_of(path)) for pattern in _RESULTS for path in sorted(folder.glob(pattern))]
    named += [_key(models) for models in _step_models(folder)]
    return list(dict.fromkeys(key for key in named if key is not None))


def _indexed(home: Path) -> Iterator[tuple[RunSummary, list[PairKey]]]:
    """Every run with its pairs; what the index knows of unchanged runs is not read again."""
    held, fresh = _read(home / INDEX), {}
    for run in list_runs(home):
        stamp = (run.path / MANIFEST).stat().st_mtime_ns if (run.path / MANIFEST).is_file() else 0
        entry = held.get(run.name)
        if not isinstance(entry, dict) or entry.get("stamp") != stamp:
            entry = {"stamp": stamp, "pairs": [[pair.base, pair.tuned] for pair in pairs_in(run.path)]}
        fresh[run.name] = entry
        yield run, [PairKey(*pair) for pair in entry["pairs"]]
    if fresh != held and home.is_dir():
        _write(home / INDEX, fresh)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file_text(file))
        if content["version"] != _VERSION or not all(_whole(entry) for entry in content["runs"].values()):
            return {}
        return dict(content["runs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _whole(entry: Any) -> bool:
    return isinstance(entry["stamp"], int) and all(len(pair) == 2 for pair in entry["pairs"])


def _write(file: Path, runs: Mapping[str, Any]) -> None:
    try:
        write_text(file, json.dumps({"version": _VERSION, "runs": runs}, indent=1))
    except (OSError, UserError):
        return  # a home that cannot be written is read without an index


def _key(models: Any) -> PairKey | None:
    """From a mapping whose ``base`` and ``tuned`` are identities."""
    if not isinstance(models, Mapping):
        return None
    hashes = [models[role].get("hash") if isinstance(models.get(role), Mapping) else None for role in ("base", "tuned")]
    base, tuned = hashes
    return PairKey(base, tuned) if isinstance(base, str) and isinstance(tuned, str) else None


def _models_of(path: Path) -> Any:
    from workbench.result_glance import models_of

    try:
        return models_of(path)
    except UserError:
        return None


def _step_models(folder: Path) -> Iterator[Any]:
    """The models that an experiment noted for its cells."""
    for path in sorted(folder.glob("models/*.json")):
        try:
            yield json.loads(file_text(path))
        except (OSError, ValueError, RecursionError):
            continue
