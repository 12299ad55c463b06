"""The errors a person can cause. Each is one sentence: what is wrong, what was expected, what to do next."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in what was asked, not a bug: the command line and the dashboard show it without a traceback."""


class NotSupported(UserError):
    """A request that is understood but cannot be done exactly here; the message gives the reason."""


class ModelBusy(UserError):
    """Another thread holds a context on this model; one model serves one context at a time."""


class MissingExtra(UserError):
    """An optional part is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part: install it with  pip install 'tunescope[{extra}]'.")


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """An error that names the closest match and lists what is known (at most 30 names)."""
    names = sorted({str(name) for name in known})
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:30]) + (f", … ({len(names)} in all)" if len(names) > 30 else "")
    return UserError(f"Unknown {what} {name!r}.{hint} Known: {listed}.")


@contextmanager
def full_gpu_told() -> Iterator[None]:
    """A GPU whose memory runs out inside is a :class:`UserError` outside."""
    try:
        yield
    except _out_of_memory() as error:
        said = str(error).partition(" GPU ")[0]
        raise UserError(
            f"The GPU's memory ran out ({said}): use fewer or shorter prompts at once, a smaller batch size where one "
            "can be given, or the CPU."
        ) from error


def _out_of_memory() -> tuple[type[Exception], ...]:
    """Looked for only when something was raised: importing torch takes seconds."""
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.OutOfMemoryError,)
