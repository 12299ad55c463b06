"""One writer per folder. The system holds the lock, so it falls with the process that held it, however that
died."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor

from workbench.errors import UserError
from workbench.files import room_for_folder


class FolderLock:
    """An exclusive lock on ``folder/.lock``, taken at once or refused with the holder's process id."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._descriptor = self._take(folder)

    def _take(self, folder: Path) -> int:
        while True:
            with room_for_folder(folder):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)  # no child inherits it
            with room_for_folder(folder):
                taken = lock_descriptor(descriptor, blocking=False)
            if not taken:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise UserError(
                    f"Another process (id {holder}) is writing to {folder}; wait for it or choose another folder."
                )
            if self._is_still_there(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
            os.close(descriptor)

    def _is_still_there(self, descriptor: int) -> bool:
        """False when the last holder deleted the file between our opening and locking it."""
        try:
            return self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False

    @staticmethod
    def is_left_behind(folder: Path) -> bool:
        """True where a process that was killed left its lock: the file is there, and nobody holds it any more."""
        path = folder / ".lock"
        try:
            with path.open("rb") as file:
                if not file.read(1):  # made, and about to be locked
                    return False
                if not lock_descriptor(file.fileno(), blocking=False):
                    time.sleep(0.01)  # it may be another that asks
                    if not lock_descriptor(file.fileno(), blocking=False):
                        return False
        except OSError:  # there is none, or it cannot be asked
            return False
        return path.exists()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Delete the lock file and let go; doing so twice is no error."""
        if self._descriptor >= 0:
            if sys.platform == "win32":  # where no open file can be deleted
                os.close(self._descriptor)
                with suppress(OSError):  # another has it already
                    self.path.unlink(missing_ok=True)
            else:
                self.path.unlink(missing_ok=True)
                os.close(self._descriptor)
            self._descriptor = -1


def _holder(descriptor: int) -> str:
    """The process id in a lock file; Windows lets no other process read what is locked."""
    try:
        return os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
