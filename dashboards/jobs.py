"""One long task of the server, in a thread of its own: its progress, a stop, and how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import streamlit as st

from workbench.errors import UserError, full_gpu_told
from workbench.progress import Progress, Stopped

State = Literal["running", "done", "stopped", "failed"]
STOPPED = "stopped by a person; the same recording again goes on from the last complete part"


@dataclass
class Job:
    """A task; it is a :class:`workbench.progress.Progress` to what it runs."""

    name: str
    state: State = "running"
    what: str = "starting"
    done: int = 0
    total: int | None = None
    said: str = ""
    """The sentence it ended with."""
    result: Any = None
    about: tuple[str, str] = ("", "")
    """Base and tuned model, where the task is about a pair."""
    stage: str = ""
    """Which part of a task of several is running."""
    _part_began: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self, what: str, total: int | None) -> None:
        """Begin a part of the task."""
        self.what, self.done, self.total, self._part_began = what, 0, total, time.monotonic()

    def advance(self, by: int = 1) -> None:
        """Raises :class:`Stopped` when a person pressed stop."""
        self.done += by
        if self._stop.is_set():
            raise Stopped(STOPPED)

    def finish(self) -> None:
        """The part is over."""

    def stop(self) -> None:
        """Ask the task to end at its next step."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and self.state == "running"

    @property
    def share(self) -> float:
        """How much of the running part is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Of the running part, by its pace so far; None before there is one."""
        if not self.share:
            return None
        return (time.monotonic() - self._part_began) * (1.0 - self.share) / self.share

    def run(self, task: Callable[[Progress], Any]) -> None:
        """Do the task; a bug keeps its traceback in the server's log."""
        ended: State = "failed"
        self.said = "An error of the program; its traceback is in the terminal in which the dashboard runs."
        try:
            with full_gpu_told():
                self.result = task(self)
            ended, self.said = "done", ""
        except Stopped as error:
            ended, self.said = "stopped", str(error)
        except UserError as error:
            self.said = str(error)
        finally:
            self.state = ended


class Desk:
    """Where the server's one task is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.job: Job | None = None

    def begin(self, name: str, task: Callable[[Progress], Any], about: tuple[str, str] = ("", "")) -> Job:
        """Start a task. Raises :class:`UserError` while another runs."""
        with self._lock:
            if self.job is not None and self.job.state == "running":
                raise UserError(f"{self.job.name} is still running: wait for it or stop it first.")
            self.job = job = Job(name, about=about)
        threading.Thread(target=job.run, args=(task,), name=name, daemon=True).start()
        return job

    def clear(self) -> None:
        """Forget a task that has ended."""
        with self._lock:
            if self.job is not None and self.job.state != "running":
                self.job = None


desk = st.cache_resource(show_spinner=False)(Desk)
