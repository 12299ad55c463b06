"""What open contexts share on a model, made so that they may be left in any order and in any thread."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import Any

Swap = Callable[[Any], Any]
"""Puts a value in force and returns what was in force before."""


class Layered:
    """One setting that contexts lay values over: the newest one still open is in force.

    When none is left, what stood there before the first comes back.
    """

    def __init__(self, swap: Swap) -> None:
        self._swap = swap
        self._original: Any = None
        self._values: dict[object, Any] = {}

    def lay(self, owner: object, value: Any) -> None:
        """``value`` is in force from now on."""
        before = self._swap(value)
        if not self._values:
            self._original = before
        self._values[owner] = value

    def lift(self, owner: object) -> bool:
        """Take the value of ``owner`` away; True when none is left and the original is back."""
        newest = next(reversed(self._values)) is owner
        del self._values[owner]
        if not self._values:
            self._swap(self._original)
        elif newest:
            self._swap(next(reversed(self._values.values())))
        return not self._values


_LAYERED: dict[Hashable, Layered] = {}


@contextmanager
def laid(key: Hashable, value: Any, swap: Swap) -> Iterator[None]:
    """``value`` is in force for the time of the context, as :class:`Layered` does it.

    Args:
        key: Names the setting among all of this process; what it holds an ``id`` of must live as long.
        value: What is in force inside.
        swap: Puts a value in force and returns what was before.
    """
    setting, owner = _LAYERED.get(key) or Layered(swap), object()
    setting.lay(owner, value)
    _LAYERED[key] = setting
    try:
        yield
    finally:
        if setting.lift(owner):
            del _LAYERED[key]


class Shared:
    """A context that is entered for the first of those who want it and left after the last of them."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = RLock()
        self._entered: AbstractContextManager[Any] | None = None
        self.wanted = 0
        """How many want it now."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Want it for the time of the context."""
        with self._lock:
            if self._entered is None:
                entered = self._make()
                entered.__enter__()
                self._entered = entered
            self.wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self.wanted -= 1
                entered_now = self._entered
                if self.wanted == 0 and entered_now is not None:
                    self._entered = None
                    entered_now.__exit__(None, None, None)
