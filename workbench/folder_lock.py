"""One writer per folder. The system holds the lock, so it falls with the process that held it, however that
died."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

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
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise UserError(
                    f"Another process (id {holder}) is writing to {folder}; wait for it or choose another folder."
                ) from error
            if self._is_still_there(descriptor):
                os.truncate(descriptor, 0)
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
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # there is none, it is held, or it cannot be asked
            return False
        return path.exists()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Delete the lock file and let go; doing so twice is no error."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
