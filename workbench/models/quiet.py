"""Loading without the progress bars of other libraries: a library call is silent, and a log file stays readable."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

_lock = threading.Lock()
_loading = 0  # how many loads go on, in all threads
_bars = contextlib.ExitStack()  # closing it draws bars again


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bar, neither while it loads weights nor while it unpacks a GGUF file.

    Several threads may load at once: the bars come back when the last of them is done.

    >>> with without_bars():
    ...     ...  # AutoModelForCausalLM.from_pretrained(...)
    """
    global _loading
    with _lock:
        if not _loading:
            _bars.enter_context(_bars_off())
        _loading += 1
    try:
        yield
    finally:
        with _lock:
            _loading -= 1
            if not _loading:
                _bars.close()


@contextlib.contextmanager
def _bars_off() -> Iterator[None]:
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # the GGUF reader takes tqdm itself, which transformers' own switch does not reach
        with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", _no_bar, create=True):
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
