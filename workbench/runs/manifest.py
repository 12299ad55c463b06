"""``run.json``: what a run is, what made it, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import UserError
from workbench.files import PARTIAL, file_text, write_json
from workbench.folder_lock import FolderLock

SCHEMA = 1
MANIFEST = "run.json"
_TOO_NEW = 2 * 10**9
"""Nanoseconds: a file changed less long ago may change again without a new time."""
State = Literal["running", "interrupted", "complete", "failed"]


class FileEntry(BaseModel):
    """Size in bytes and content hash of one file."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What ``run.json`` holds. No times are in it: the same run gives the same bytes, also after a resume."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: int = Field(default=SCHEMA, alias="schema")
    kind: str
    """Which command made it: record, localize, steer, ..."""
    config: dict[str, Any]
    """What was asked for; another configuration needs another run."""
    provenance: dict[str, Any] = {}
    """What it was made with: models, hashes, versions, device, seed."""
    state: State = "running"
    error: str | None = None
    """The sentence a failed run ended with."""
    files: dict[str, FileEntry] = {}
    """Path below the run's folder -> size and hash, written when the run ends."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in ``folder``; a missing, damaged or newer one is a :class:`UserError`.

    A run that a killed process left running is interrupted.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise UserError(f"{folder} is no run: it has no {MANIFEST}; give a folder that a Tunescope command wrote.")
    manifest = _unchanged(path) or _read(path)
    killed = manifest.state == "running" and FolderLock.is_left_behind(folder)
    return manifest.model_copy(update={"state": "interrupted"}) if killed else manifest


def _unchanged(path: Path) -> Manifest | None:
    """What was read of a file that is the same since; nothing of one so new that a later writing has the same time."""
    try:
        state = path.stat()
    except OSError:
        return None
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _TOO_NEW:
        return None
    return _read_once(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=4096)
def _read_once(path: Path, *_stamp: int) -> Manifest:
    return _read(path)


def _read(path: Path) -> Manifest:
    folder = path.parent
    try:
        raw = json.loads(file_text(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); restore it, or remove its folder."
        ) from error
    except RecursionError as error:
        raise UserError(
            f"{path} is damaged (nested too deeply); restore it or run again into another folder."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it or run again into another folder.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(
            f"{folder} was written by a newer Tunescope (schema {schema}; this one reads up to {SCHEMA}); "
            "update your checkout of Tunescope."
        )
    try:
        return Manifest.model_validate(raw)
    except RecursionError as error:
        raise UserError(
            f"{path} is damaged (nested too deeply); restore it or run again into another folder."
        ) from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its top level"
        raise UserError(
            f"{path} is no valid manifest ({where}: {error.errors()[0]['msg']}); restore it or run again."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace ``run.json`` in one step."""
    write_json(folder / MANIFEST, manifest.model_dump(by_alias=True))


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Size and hash of every file below ``folder`` but the manifest, half-written ones and locks."""
    return {name: hash_file(folder / name) for name in file_names(folder)}


def file_names(folder: Path) -> list[str]:
    """Every file below ``folder`` (links too), relative to it, sorted; without manifest, partial files and
    locks."""
    names = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    files = [path for path in names if not path.name.startswith(PARTIAL) and path.name != ".lock"]
    return sorted(path.relative_to(folder).as_posix() for path in files if path != folder / MANIFEST)


def hash_file(path: Path) -> FileEntry:
    """Read ``path`` and hash it; a link is a :class:`UserError`, because what it points to can change."""
    if path.is_symlink():
        raise UserError(f"{path} is a link; a run holds its files itself. Copy the file in its place.")
    if not path.is_file():
        raise UserError(
            f"{path} is no regular file (a pipe, a socket or a device); a run holds files alone. Remove it."
        )
    with path.open("rb") as file:
        return FileEntry(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
