"""Files that are whole or absent: written beside their place as ``.partial-*``, flushed, then renamed."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import UserError

PARTIAL = ".partial-"
MOST_TEXT = 256 * 2**20
"""Bytes of a file of settings or results that is read whole; the largest known tokenizer takes 35 MB."""

# EFBIG and EDQUOT are what a file-size limit and a quota answer; for the person all three are a full disk.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DamagedWarning(UserWarning):
    """A stored file is not what was written; what it held is made again."""


def check_file(path: Path, most: int | None = None) -> Path:
    """``path``, once it is seen to be a file that ends.

    Raises:
        OSError: It is a pipe, a socket, a device or a folder, which have no end to read to, or larger than ``most``.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if most is not None and state.st_size > most:
        raise OSError(errno.EFBIG, f"it holds {state.st_size:,} bytes, of {most:,} at most")
    return path


def file_text(path: Path, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a file. Raises as :func:`check_file` does, and ValueError for what is no UTF-8."""
    return check_file(path, most).read_text(encoding="utf-8")


def file_digest(path: Path) -> str:
    """Sha256 of a file's bytes. Raises as :func:`check_file` does."""
    with check_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield the path to write; on leaving it is flushed to the disk and renamed to ``target``.

    After an exception nothing is left, neither the partial file nor a changed target. A full disk is a
    :class:`UserError`.
    """
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{target.name}")
    try:
        with room_for(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            partial.replace(target)
            _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_new_folder(folder: Path) -> None:
    """Raise :class:`UserError` where something is there already, but for an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: give a new folder.")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield the path of a folder to make and fill; on leaving it becomes ``target``, new or empty until then."""
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{target.name}")
    try:
        with room_for(target):
            yield partial
            if target.exists():
                target.rmdir()
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Turn "no space left" and "not allowed" from the system into a sentence about ``target``."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"Cannot write {target}: permission denied; choose a folder you may write to.") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise UserError(f"Cannot write {target}: a file is where a folder should be; choose another path.") from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"No space left for {target} ({os.strerror(error.errno)}); nothing half-written was kept. "
            "Free some space and run the same command again."
        ) from error


@contextmanager
def room_for_folder(folder: Path) -> Iterator[None]:
    """As :func:`room_for`, for a folder that is looked for and made: whatever the system says against it."""
    try:
        with room_for(folder):
            yield
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}; choose another folder.") from error


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that the system cannot even look for (too long, a zero byte) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, data: bytes) -> None:
    """Write ``data``, whole or not at all."""
    with atomic(target) as partial:
        partial.write_bytes(data)


def write_json(target: Path, payload: Any) -> None:
    """Write ``payload`` as JSON with sorted keys; the same payload gives the same bytes."""
    write_text(target, json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def remove_partials(folder: Path) -> None:
    """Delete what writers that were killed left half-written anywhere below ``folder``."""
    for path in folder.rglob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    if sys.platform == "win32" and path.is_dir():  # has no such call
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def closest_sibling(path: Path) -> str:
    """A sentence naming the sibling a mistyped path was meant to be, when there is one."""
    if not path.parent.is_dir():
        return f" Its parent {path.parent} does not exist either; check the path."
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    return f" Did you mean {path.parent / close[0]}?" if close else " Check the path."
