"""Long work goes on where it was stopped: each batch that a run finishes is written down, and read on the next try.

A loop hands its batch to :func:`batch`. Inside a run, the value is kept under the hash of what the batch is about and
of how often that came before; a run that was killed finds it there, so the work behind it is the same to the bit.
Outside a run, the batch is computed and that is all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from workbench import result_file
from workbench.errors import UserError
from workbench.files import DamagedWarning

Part = TypeVar("Part")
Value = TypeVar("Value")
KIND = "finished batches"
SECONDS = 2.0
"""Finished batches are written together, this often at most: a kill costs two seconds more than the batch it is in."""


@runtime_checkable
class PassCounter(Protocol):
    """Counts forward passes; those of a batch that is read instead of computed are added."""

    forward: int


class _Store:
    """The finished batches of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scopes: list[str] = []
        self.counters: list[PassCounter] = []
        self.seconds = 0.0
        self._met: Counter[str] = Counter()
        self._known: dict[str, dict[str, Any]] | None = None
        self._pending: dict[str, dict[str, Any]] = {}
        self._inner: list[list[str]] = []
        self._written = time.monotonic()

    def value(self, what: str, content: Any, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, or returned before the run was stopped."""
        return self.named(self.name(what, content), compute)

    def named(self, name: str, compute: Callable[[], Any]) -> Any:
        """The same under a name that is taken already."""
        known = self._read().pop(name, None)
        if known is None:
            return self._computed(name, compute)
        for counter, passes in zip(self.counters, known["passes"], strict=False):
            counter.forward += passes
        self.seconds += known["seconds"]
        return known["value"]

    def write(self) -> None:
        """Put what is finished on the disk."""
        if self._pending:
            number = sum(1 for _ in self.folder.glob("*.safetensors"))
            result_file.write(self.folder / f"{number:06d}", KIND, dict(self._pending))
            self._pending.clear()
        self._written = time.monotonic()

    def is_finished(self, name: str) -> bool:
        """Whether an earlier try finished it."""
        return name in self._read()

    def name(self, what: str, content: Any) -> str:
        """What the next batch of this content is kept under."""
        fed = hashlib.sha256()
        _feed(fed, [self.scopes, what, content])
        self._met[fed.hexdigest()] += 1
        return f"{fed.hexdigest()}-{self._met[fed.hexdigest()]}"

    def place(self, name: str) -> Path:
        """The file of a long batch that is written by itself."""
        return self.folder / "unfinished" / f"{name}.safetensors"

    def workplace(self, what: str, content: Any) -> Path:
        """The same, of the next long batch of this content; gone when the batch that it is part of is whole."""
        name = self.name(what, content)
        for outer in self._inner[-1:]:
            outer.append(name)
        return self.place(name)

    def _computed(self, name: str, compute: Callable[[], Any]) -> Any:
        before, began = [counter.forward for counter in self.counters], clock()
        self._inner.append([])
        self.scopes.append(name)
        try:
            value = compute()
        finally:
            self.scopes.pop()
            inner = self._inner.pop()
        for part in inner:  # batches of a batch that is whole
            self._pending.pop(part, None)
            self.place(part).unlink(missing_ok=True)
        passes = [counter.forward - count for counter, count in zip(self.counters, before, strict=True)]
        self._pending[name] = {"value": value, "passes": passes, "seconds": clock() - began}
        for outer in self._inner[-1:]:
            outer.append(name)
        if time.monotonic() - self._written >= SECONDS:
            self.write()
        return value

    def _read(self) -> dict[str, dict[str, Any]]:
        """What an earlier try finished; a damaged file is left out with a warning, and its batches are done again."""
        if self._known is None:
            self._known = {}
            for path in sorted(self.folder.glob("*.safetensors")):
                try:
                    self._known |= result_file.read(path)[1]
                except (UserError, ValueError) as error:
                    said = str(error).partition(";")[0]
                    warnings.warn(f"{said}; its batches are done again.", DamagedWarning, stacklevel=2)
        return self._known


_OPEN: ContextVar[_Store | None] = ContextVar("tunescope_finished_batches", default=None)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Keep the finished batches of what runs inside in ``folder`` while it runs, and use those of an earlier try.

    The folder is gone once the context is left without an exception, or by a :class:`UserError`, which the next try
    would only meet again. Nothing is kept outside a :func:`scope`.

    Example:
        >>> with resumable(run.file("batches")), scope(lambda: {"model": model.identity.hash}):
        ...     rows = [batch("score", ids, lambda: score(ids)) for ids in plan]
    """
    store = _Store(folder)
    token = _OPEN.set(store)
    try:
        yield
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        store.write()
        raise
    finally:
        _OPEN.reset(token)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scope(content: Callable[[], Any]) -> Iterator[None]:
    """Everything that batches inside depend on besides what they name: models by hash, prompts, settings.

    ``content`` is called only where finished batches are kept. The installed versions count too.
    """
    store = _OPEN.get()
    if store is None:
        yield
        return
    from workbench.results import Provenance

    fed = hashlib.sha256()
    _feed(fed, [content(), dict(Provenance(probe=KIND, models={}).versions)])
    store.scopes.append(fed.hexdigest())
    try:
        yield
    finally:
        store.scopes.pop()


def batch(what: str, content: Any, compute: Callable[[], Value]) -> Value:
    """The value of ``compute``: read where the run was stopped after it, computed otherwise.

    Args:
        what: Which loop it is part of.
        content: What it is about: token ids, settings, recipes. What has no content of its own, such as a function,
            counts by its kind alone; batches of the same content are told apart by their order.
        compute: Returns numbers, text, arrays, tensors and tables, in lists, tuples and dicts with text as keys.

    Returns:
        The value, equal to the bit.
    """
    store = _OPEN.get()
    return compute() if store is None or not store.scopes else store.value(what, content, compute)


def in_turn(
    parts: Sequence[Part], content: Callable[[Part], Any], compute: Callable[[Sequence[Part]], Iterator[Value]]
) -> Iterator[Value]:
    """The values of many batches, where those that are not finished are computed together, as by several machines.

    Args:
        parts: What makes each batch.
        content: What a batch is about, as :func:`batch` takes it; called only where finished batches are kept.
        compute: Gets the parts of the batches that are not finished, and yields their values in order.

    Yields:
        The value of each batch.
    """
    store = _OPEN.get()
    if store is None or not store.scopes:
        yield from compute(parts)
        return
    names = [store.name("part", content(part)) for part in parts]
    values = compute([part for part, name in zip(parts, names, strict=True) if not store.is_finished(name)])
    for name in names:
        yield store.named(name, partial(next, values))


def workplace(what: str, content: Any) -> Path | None:
    """Where a batch that takes long writes what it has so far, in a form of its own; None where nothing is kept.

    Args:
        what: Which loop it is part of.
        content: What it is about, as :func:`batch` takes it.
    """
    store = _OPEN.get()
    return None if store is None or not store.scopes else store.workplace(what, content)


def goes_on() -> bool:
    """Whether an earlier try left something finished."""
    store = _OPEN.get()
    return store is not None and store.folder.is_dir()


def counters() -> list[PassCounter]:
    """Those to which the forward passes of earlier tries are added."""
    store = _OPEN.get()
    return [] if store is None else list(store.counters)


def fingerprint(content: Any) -> str:
    """The hash of what all batches of a loop are about, such as a recipe, to be part of each one's ``content``; empty
    where nothing is kept."""
    if _OPEN.get() is None:
        return ""
    fed = hashlib.sha256()
    _feed(fed, content)
    return fed.hexdigest()


def clock() -> float:
    """Seconds from some moment on, as if no batch had been read instead of computed."""
    store = _OPEN.get()
    return time.perf_counter() + (0.0 if store is None else store.seconds)


@contextmanager
def counting(counter: PassCounter) -> Iterator[None]:
    """Add the forward passes of batches that are read instead of computed to ``counter``."""
    store = _OPEN.get()
    if store is None:
        yield
        return
    store.counters.append(counter)
    try:
        yield
    finally:
        store.counters.remove(counter)


def _feed(fed: Any, value: Any) -> None:
    """Add a value's content to a hash."""
    from workbench.models.digests import digest

    fed.update(f"{type(value).__qualname__}:".encode())
    if isinstance(value, torch.Tensor):
        fed.update(digest(value).encode())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        fed.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, str | bytes | int | float | bool | None | np.generic | Path):
        fed.update(repr(value).encode())
    elif isinstance(value, Mapping):
        _feed(fed, list(value.items()))
    elif isinstance(value, set | frozenset):
        _feed(fed, sorted(value, key=repr))
    elif isinstance(value, Sequence | np.ndarray) and not hasattr(value, "hash"):
        fed.update(f"{len(value)}[".encode())
        for item in value:
            _feed(fed, item)
    elif isinstance(getattr(value, "hash", None), str):  # prompts
        fed.update(value.hash.encode())
    elif hasattr(value, "to_tensors"):  # an intervention; one that holds another model has no file form
        with suppress(UserError):
            _feed(fed, value.to_tensors())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _feed(fed, [field.name, getattr(value, field.name)])


__all__ = [
    "PassCounter", "batch", "clock", "counters", "counting", "fingerprint", "goes_on", "in_turn", "resumable", "scope",
    "workplace",
]  # fmt: skip
