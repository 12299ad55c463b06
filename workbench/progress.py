"""One small protocol for anything long: a total, an advance, a note, and a way to be stopped.

``rich`` draws it in a terminal, ``tqdm`` in a notebook, ``st.progress`` in the app; a library call is silent
unless it is handed one.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, runtime_checkable


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

    def __enter__(self) -> RichProgress:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def start(self, what: str, total: int | None) -> None:
        self._tasks.append(self._bars.add_task(what, total=total))

    def advance(self, by: int = 1) -> None:
        self._bars.advance(self._tasks[-1], by)

    def finish(self) -> None:
        self._bars.remove_task(self._tasks.pop())


class NotebookProgress:
    """A tqdm bar, which Jupyter draws as a widget when it can."""

    def __init__(self) -> None:
        self._bars: list[Any] = []

    def start(self, what: str, total: int | None) -> None:
        from tqdm.auto import tqdm

        self._bars.append(tqdm(total=total, desc=what, leave=False))

    def advance(self, by: int = 1) -> None:
        self._bars[-1].update(by)

    def finish(self) -> None:
        self._bars.pop().close()
