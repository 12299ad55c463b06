"""Where built organisms live: one folder per recipe, seed and code version, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.folder_lock import FolderLock

CODE_VERSION = 1
"""Raise it when the organisms' code changes what is built from the same recipe."""


def home(cache: str | Path | None = None) -> Path:
    """The cache folder: the argument, else ``$TUNESCOPE_CACHE``, else ``~/.cache/tunescope/organisms``."""
    if cache is not None:
        return Path(cache).expanduser()
    named = os.environ.get("TUNESCOPE_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tunescope" / "organisms"


def key(recipe: dict[str, Any], seed: int) -> str:
    """Twelve hex digits of the hash of everything that decides what is built."""
    import torch
    import transformers

    versions = [CODE_VERSION, torch.__version__, transformers.__version__]
    text = json.dumps([recipe, seed, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fetch(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, made by ``make(partial)`` when it is not there; a half-made one is never seen under its name.

    What a killed build left half-made (``.partial-*``) is removed, and its trainings go on from their checkpoints
    (``.parts-*``). Raises UserError when the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".partial-{folder.name}-*"):
            if not _alive(int(stale.name.rsplit("-", 2)[-2])):
                shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".partial-{folder.name}-{os.getpid()}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"The organism cache {folder.parent} cannot be written ({error.strerror}); "
            "set TUNESCOPE_CACHE or --cache to a folder that can."
        ) from error
    try:
        with _going_on(folder.parent / f".parts-{folder.name}", folder.name):
            make(partial)
        partial.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process built the same organism meanwhile
            return folder
        raise UserError(
            f"Building {folder.name} in {folder.parent} failed ({error.strerror or error}); "
            "check the free space there, or set TUNESCOPE_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def _going_on(parts: Path, content: str) -> Iterator[None]:
    """Trainings inside keep checkpoints in ``parts``, unless another process that builds the same does."""
    parts.mkdir(exist_ok=True)
    try:
        lock = FolderLock(parts)
    except UserError:
        yield
        return
    from workbench.finished_batches import resumable, scope  # torch, which the folder's name does not need

    with lock, resumable(parts), scope(lambda: content):
        yield


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
