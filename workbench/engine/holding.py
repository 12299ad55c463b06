"""Who holds a model: the thread, task or generator that opened a context on it, and who counts as being inside.

* Opened by a plain call, the thread is inside, and every task and thread that was given its ``contextvars``
  (``asyncio.create_task`` and ``asyncio.to_thread`` inside the context do so).
* Opened in an asyncio task, that task is inside, and what it started since.
* Opened in a generator that streams, its own steps are inside, whichever thread takes them. A generator that only
  wraps a ``with`` (``contextlib.contextmanager``, a pytest fixture) opens for whoever entered it.

Everybody else is refused with :class:`workbench.errors.ModelBusy`. Contexts may end in any order and any thread.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from contextvars import ContextVar
from itertools import count
from threading import RLock, get_ident
from types import FrameType
from typing import Any

from workbench.errors import ModelBusy

_NUMBERS = count()
_VISIBLE: ContextVar[frozenset[int]] = ContextVar("tunescope_open_contexts", default=frozenset())
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_LENDERS = ("contextlib", "_pytest.", "pytest_asyncio.", "anyio.pytest_plugin")
"""Modules that run a generator up to its ``yield`` for somebody else, who is then inside what it opened."""


class Holding:
    """One open context on a model, and where it was opened."""

    def __init__(self) -> None:
        self.number = next(_NUMBERS)
        self.thread = get_ident()
        self.task = _task()
        self.generator = _generator()

    @property
    def plain(self) -> bool:
        """Whether the thread alone decides who is inside."""
        return self.generator is None and self.task is None

    def inside(self) -> bool:
        """Whether the caller is inside this context."""
        if self.generator is not None:
            if _running(self.generator):
                return True
            streams = not self.generator.f_code.co_flags & inspect.CO_ASYNC_GENERATOR
            if streams or (self.thread, self.task) == (get_ident(), _task()):
                return False
            return self.number in _VISIBLE.get()
        if self.number in _VISIBLE.get():
            return True
        return self.thread == get_ident() and (self.task is None or self.task.done())

    def refusal(self) -> ModelBusy:
        """Why somebody outside is refused."""
        if self.generator is not None:
            who = f"The generator {self.generator.f_code.co_name}() has a context open on this model and"
        elif self.thread == get_ident():
            who = "Another task"
        else:
            who = "Another thread"
        return ModelBusy(
            f"{who} is using this model; one model serves one context at a time: wait for it to end, enter the recipe "
            "where the model is called (a thread started inside is let in with contextvars.copy_context().run as its "
            "target), or load the model a second time."
        )


class Holdings:
    """Every open context on one model."""

    def __init__(self) -> None:
        self._lock = RLock()  # held for a moment only; taken again where garbage collection closes a context meanwhile
        self._open: list[Holding] = []
        self.thread: int | None = None
        """The thread that is inside all open contexts, where nothing else has to be asked."""

    def __bool__(self) -> bool:
        return bool(self._open)

    def open(self) -> Holding:
        """Hold the model; raises :class:`ModelBusy` when somebody else does."""
        with self._lock:
            self.check()
            holding = Holding()
            self._open.append(holding)
            self._note()
        _VISIBLE.set(_VISIBLE.get() | {holding.number})
        return holding

    def close(self, holding: Holding) -> None:
        """The end of a context, in whatever thread."""
        with self._lock:
            self._open.remove(holding)
            self._note()
        holding.generator = holding.task = None
        _VISIBLE.set(_VISIBLE.get() - {holding.number})

    def check(self) -> None:
        """Raise :class:`ModelBusy` unless the caller is inside every open context."""
        if self.thread == get_ident():
            return
        for holding in tuple(self._open):
            if not holding.inside():
                raise holding.refusal()

    def _note(self) -> None:
        threads = {holder.thread if holder.plain else None for holder in self._open}
        self.thread = threads.pop() if len(threads) == 1 else None


def _task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def _generator() -> FrameType | None:
    """The innermost generator on the stack that streams, as opposed to one that opens something for its caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_back
        if frame.f_code.co_flags & _GENERATOR and not (caller is not None and _lends(caller)):
            return frame
        frame = caller
    return None


def _lends(caller: FrameType) -> bool:
    return str(caller.f_globals.get("__name__", "")).startswith(_LENDERS)


def _running(generator: FrameType) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame is generator:
            return True
        frame = frame.f_back
    return False
