"""One small protocol for anything long: a total, an advance, a note, and a way to be stopped.

``rich`` draws it in a terminal, ``tqdm`` in a notebook, ``st.progress`` in the app; in a log file it is a line a
minute. A library call is silent unless it is handed one. A progress that also has ``partly`` hears how much of the
running units is done, so that its bar moves while a long batch of texts is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

Unit = TypeVar("Unit")
EVERY = 0.5
"""Seconds between two reports from within a unit; a bar is to move at least every 2."""


class Stopped(Exception):
    """Raised at the next step after a person pressed stop; complete work is kept and can be resumed."""


@runtime_checkable
class Progress(Protocol):
    """What a long task reports to."""

    def start(self, what: str, total: int | None) -> None:
        """Begin ``what``, with ``total`` units of work when that is known."""

    def advance(self, by: int = 1) -> None:
        """``by`` more units are done. Raises :class:`Stopped` when the person asked to stop."""

    def finish(self) -> None:
        """The task begun last is over."""


@runtime_checkable
class HearsParts(Progress, Protocol):
    """A progress that can show what is done of the batch that runs."""

    def partly(self, done: float) -> None:
        """``done`` units, or parts of one, of what runs now. Raises :class:`Stopped` as ``advance`` does."""


class _Listener:
    """A progress, and when it was told something last."""

    def __init__(self, progress: HearsParts, units: int) -> None:
        self._progress, self._units = progress, units
        self._told = time.monotonic()

    def tell(self, share: float) -> None:
        """Pass on which share of a batch is written, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told = now
            self._progress.partly(self._units * min(1.0, share))


_LISTENER: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(progress: Progress | None, units: int = 1) -> Iterator[None]:
    """Texts that are written inside report to ``progress`` token by token, as parts of the units that it counts.

    Args:
        progress: A bar; one without ``partly``, or None, hears nothing.
        units: What the bar counts one batch of texts as.

    Example:
        ``with listening(bar): model.generate_ids(batch, max_new_tokens=64)``
    """
    held = _LISTENER.set(_Listener(progress, units) if isinstance(progress, HearsParts) else None)
    try:
        yield
    finally:
        _LISTENER.reset(held)


def listener() -> Callable[[float], None] | None:
    """Where the share of the running batch is told; None where nobody listens."""
    heard = _LISTENER.get()
    return None if heard is None else heard.tell


def tracked(units: Iterable[Unit], progress: Progress) -> Iterator[Unit]:
    """``units`` one after the other, each told to ``progress`` when the loop is done with it.

    Example:
        ``for layer in tracked(layers, bar): ...``
    """
    for unit in units:
        yield unit
        progress.advance()


class Silent:
    """Reports to nobody."""

    def start(self, what: str, total: int | None) -> None: ...

    def advance(self, by: int = 1) -> None: ...

    def finish(self) -> None: ...


class JoinedProgress:
    """Several loops as one bar, which their caller starts and finishes: their steps count on."""

    def __init__(self, whole: Progress) -> None:
        self._whole = whole

    def start(self, what: str, total: int | None) -> None: ...

    def advance(self, by: int = 1) -> None:
        self._whole.advance(by)

    def finish(self) -> None: ...


class RichProgress:
    """A bar on stderr with rate and time left; use it as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars
        from rich.text import Text

        class Rate(ProgressColumn):
            """Units done a second."""

            def render(self, task: Any) -> Text:
                return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")

        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: list[Any] = []
        self._done: list[int] = []

    def __enter__(self) -> RichProgress:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def start(self, what: str, total: int | None) -> None:
        self._tasks.append(self._bars.add_task(what, total=total))
        self._done.append(0)

    def advance(self, by: int = 1) -> None:
        self._done[-1] += by
        self._bars.update(self._tasks[-1], completed=self._done[-1])

    def partly(self, done: float) -> None:
        if self._tasks:
            self._bars.update(self._tasks[-1], completed=self._done[-1] + done)

    def finish(self) -> None:
        self._bars.remove_task(self._tasks.pop())
        self._done.pop()


class LineProgress:
    """A line on stderr at most every ``seconds``, for a log file or a pipe; what ends sooner writes nothing.

    A line says how long the command has run, what it is at, and how much of that is done: ``[ 3 min] heads: 40 of
    270 (15 %), about 14 min left``.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._began = self._last_line = time.monotonic()
        self._tasks: list[_Task] = []

    def start(self, what: str, total: int | None) -> None:
        self._tasks.append(_Task(what, total, time.monotonic()))
        self._write_when_due()

    def advance(self, by: int = 1) -> None:
        task = self._tasks[-1]
        task.done, task.part = task.done + by, 0.0
        self._write_when_due()

    def partly(self, done: float) -> None:
        if self._tasks:
            self._tasks[-1].part = done
            self._write_when_due()

    def finish(self) -> None:
        self._tasks.pop()

    def _write_when_due(self) -> None:
        now = time.monotonic()
        if now - self._last_line < self._seconds:
            return
        self._last_line = now
        state = ", ".join(task.said(now) for task in self._tasks)
        sys.stderr.write(f"[{(now - self._began) / 60:2.0f} min] {state}\n")
        sys.stderr.flush()


@dataclass
class _Task:
    """What goes on, how much of it is done, and since when."""

    what: str
    total: int | None
    began: float
    done: int = 0
    part: float = 0.0
    """Units, or parts of one, of the batch that runs."""

    def said(self, now: float) -> str:
        if not self.total:
            return f"{self.what}: {self.done}" if self.done else self.what
        so_far = self.done + self.part
        share = f"{self.what}: {self.done} of {self.total} ({so_far / self.total:.0%})".replace("%)", " %)")
        if not 0 < so_far < self.total:
            return share
        left = (now - self.began) / so_far * (self.total - so_far)
        return f"{share}, about {left / 60:.0f} min left" if left > 60 else share


class NotebookProgress:
    """A tqdm bar, which Jupyter draws as a widget when it can."""

    def __init__(self) -> None:
        self._bars: list[Any] = []
        self._done: list[int] = []

    def start(self, what: str, total: int | None) -> None:
        from tqdm.auto import tqdm

        self._bars.append(tqdm(total=total, desc=what, leave=False))
        self._done.append(0)

    def advance(self, by: int = 1) -> None:
        self._done[-1] += by
        self._bars[-1].update(self._done[-1] - self._bars[-1].n)

    def partly(self, done: float) -> None:
        if self._bars:
            self._bars[-1].update(round(self._done[-1] + done - self._bars[-1].n, 2))

    def finish(self) -> None:
        self._bars.pop().close()
        self._done.pop()
