"""``python -m workbench.vllm.further_rank``: rank 1, 2, ... of an engine, which makes every call that rank 0 makes.

What to open, then the calls come on stdin; where it ends, rank 0 has ended, and so does this process at once, also in
the middle of a collective.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue

from workbench.errors import UserError
from workbench.vllm.ranks import Call
from workbench.vllm.running import VllmEngine


def main() -> None:
    """Take part until rank 0 ends."""
    origin, settings = pickle.load(sys.stdin.buffer)
    calls: SimpleQueue[Call] = SimpleQueue()
    threading.Thread(target=_read, args=(calls,), daemon=True).start()
    engine = VllmEngine(origin, further_rank=True, **settings)
    while True:
        with suppress(UserError):  # rank 0 has it too, and says it
            engine.take_part(calls.get())


def _read(calls: SimpleQueue[Call]) -> None:
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    main()
