"""The server's long tasks: a queue from which one runs at a time, each with its progress, a stop, and how it ended.

One at a time, because one pair of models serves one task at a time; the others wait in the order in which they came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import streamlit as st

from dashboards.job_journal import Interrupted, Journal, Order
from workbench.errors import UserError, full_gpu_told
from workbench.progress import Progress, Stopped
from workbench.runs.places import default_home

State = Literal["waiting", "running", "done", "stopped", "failed"]
STOPPED = "stopped by a person; the same again goes on behind the last complete part"
_ENDED_READS, _ENDED = 8, 24
"""So many ended tasks are remembered: quick reads of a page, whose results they hold, and others."""
_CHAT_WAITS = 120.0
"""Seconds."""


@dataclass
class Job:
    """A task; it is a :class:`workbench.progress.Progress` to what it runs."""

    name: str
    state: State = "running"
    what: str = "starting"
    done: int = 0
    part: float = 0.0
    """Units, or parts of one, that are done of the batch that runs now."""
    total: int | None = None
    said: str = ""
    """The sentence it ended with."""
    result: Any = None
    about: tuple[str, str] = ("", "")
    """Base and tuned model, where the task is about a pair."""
    stage: str = ""
    """Which part of a task of several is running."""
    number: int = 0
    """Counts the server's tasks."""
    key: Any = None
    """What it computes, compared by value: the same question finds the task again after a reload."""
    page: str = ""
    """The page that shows how it ended."""
    is_read: bool = False
    """Something that a page reads for itself, and shows where its button stands."""
    order: Order | None = None
    """What a server that comes after this one begins again, should this one be killed."""
    _part_began: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self, what: str, total: int | None) -> None:
        """Begin a part of the task."""
        self.what, self.done, self.total, self._part_began = what, 0, total, time.monotonic()
        self.part = 0.0

    def advance(self, by: int = 1) -> None:
        """Raises :class:`Stopped` when a person pressed stop."""
        self.done, self.part = self.done + by, 0.0
        if self._stop.is_set():
            raise Stopped(STOPPED)

    def partly(self, done: float) -> None:
        """How much of the batch that runs now is done; raises :class:`Stopped` when a person pressed stop."""
        self.part = done
        if self._stop.is_set():
            raise Stopped(STOPPED)

    def finish(self) -> None:
        """The part is over."""

    def stop(self) -> None:
        """Ask the task to end at its next step; one that waits ends at once."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        return self._ended.wait(seconds)

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() and self.is_active

    @property
    def share(self) -> float:
        """How much of the running part is done, 0 to 1."""
        return min(1.0, (self.done + self.part) / self.total) if self.total else 0.0

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
            self.end(ended)

    def end(self, state: State) -> None:
        """It is over."""
        self.state = state
        self._ended.set()


class Desk:
    """The server's tasks, in the order in which they came."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._models = threading.Lock()
        self._jobs: list[Job] = []
        self._numbers = count(1)
        self._journal = Journal(default_home())
        self.interrupted: list[Interrupted] = self._journal.left_behind()
        """Tasks of a server that was killed while they waited or ran, until they are resumed or dismissed."""
        self._note()

    def begin(
        self,
        name: str,
        task: Callable[[Progress], Any],
        about: tuple[str, str] = ("", ""),
        *,
        key: Any = None,
        page: str = "",
        is_read: bool = False,
        order: Order | None = None,
    ) -> Job:
        """Put a task into the queue, where it runs as soon as those before it have ended.

        Args:
            name: How it is called in the list of tasks.
            task: Called with the job as its progress, in a thread of its own.
            about: Base and tuned model, where it is about a pair.
            key: What it computes, compared by value.
            page: The page that shows how it ended.
            is_read: Something that a page reads for itself.
            order: What is begun again should this server be killed.

        Returns:
            The job; the one that is at work where the same ``key`` waits or runs already.
        """
        with self._turn:
            same = None if key is None else self.latest(key)
            if same is not None and same.is_active:
                return same
            state: State = "waiting" if self.active else "running"
            number = next(self._numbers)
            job = Job(name, state, about=about, number=number, key=key, page=page, is_read=is_read, order=order)
            self._jobs.append(job)
            self._trim()
            self._note()
        threading.Thread(target=self._work, args=(job, task), name=name, daemon=True).start()
        return job

    @property
    def jobs(self) -> list[Job]:
        """Every task that is remembered, the oldest first."""
        return list(self._jobs)

    @property
    def active(self) -> list[Job]:
        """Those that run or wait, in the order in which they will end."""
        return [job for job in self._jobs if job.is_active]

    @property
    def job(self) -> Job | None:
        """The task that runs; else the one that came last."""
        return next(iter(self.active), self._jobs[-1] if self._jobs else None)

    def latest(self, key: Any) -> Job | None:
        """The last task that computes ``key``."""
        return next((job for job in reversed(self._jobs) if job.key is not None and job.key == key), None)

    def place(self, job: Job) -> int:
        """How many tasks stand before it; 0 for the one that runs."""
        return next((place for place, other in enumerate(self.active) if other is job), 0)

    def clear(self, job: Job | None = None) -> None:
        """Forget a task that has ended, or all that have."""
        with self._turn:
            self._jobs = [other for other in self._jobs if other.is_active or (job is not None and other is not job)]

    @contextmanager
    def models_held(self) -> Iterator[None]:
        """The models for the caller alone, between two tasks.

        Raises:
            UserError: They were not free for two minutes.
        """
        if not self._models.acquire(timeout=_CHAT_WAITS):
            raise UserError("These models have been at work for two minutes; send it again when the tasks have ended.")
        try:
            yield
        finally:
            self._models.release()

    def _work(self, job: Job, task: Callable[[Progress], Any]) -> None:
        with self._turn:
            while self.place(job) and not job.stopping:
                self._turn.wait(0.2)
            if job.stopping:
                job.said = "Taken out of the queue before it began."
                job.end("stopped")
            else:
                job.state = "running"
        try:
            if job.is_active:
                with self._models:
                    job.run(task)
        finally:
            with self._turn:
                self._note()
                self._turn.notify_all()

    def goes_on_with(self, job: Job, order: Order) -> None:
        """A part of a task is complete: what would be begun again is less from here on."""
        with self._turn:
            job.order = order
            self._note()

    def dismiss(self, lost: Interrupted) -> None:
        """An interrupted task is told no longer."""
        with self._turn:
            self.interrupted = [task for task in self.interrupted if task is not lost]
            self._note()

    def _note(self) -> None:
        active = [Interrupted(job.name, job.page, job.order) for job in self.active if not job.is_read]
        self._journal.write([*self.interrupted, *active])

    def _trim(self) -> None:
        """Forget the oldest that have ended, where there are many."""
        for is_read, most in ((True, _ENDED_READS), (False, _ENDED)):
            ended = [job for job in self._jobs if not job.is_active and job.is_read == is_read]
            old = {id(job) for job in ended[: max(0, len(ended) - most)]}
            self._jobs = [job for job in self._jobs if id(job) not in old]


desk = st.cache_resource(show_spinner=False)(Desk)
