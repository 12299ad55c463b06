"""``python -m workbench.vllm.further_rank``: rank 1, 2, ... of an engine, which makes every call that rank 0 makes.

What to open, then the calls come on stdin; where it ends, rank 0 has ended, and so does this process, also in the
middle of a collective. What a stage saw in a call goes to rank 0 on stdout; all that is printed goes to stderr.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue

from workbench.errors import UserError
from workbench.vllm.ranks import Call, meet_at_own_port, reporting_ranks
from workbench.vllm.running import VllmEngine

_STDOUT, _STDERR = 1, 2
LEAVING = 5.0
"""Seconds to end in order; a collective that rank 0 left does not end."""


def main() -> None:
    """Take part until rank 0 ends."""
    answers = os.fdopen(os.dup(_STDOUT), "wb")
    os.dup2(_STDERR, _STDOUT)
    origin, settings = pickle.load(sys.stdin.buffer)
    reports = int(os.environ["RANK"]) in reporting_ranks(settings)
    calls: SimpleQueue[Call | None] = SimpleQueue()
    threading.Thread(target=_read, args=(calls,), daemon=True).start()
    meet_at_own_port()
    engine = VllmEngine(origin, further_rank=True, **settings)
    while (call := calls.get()) is not None:
        with suppress(UserError):  # rank 0 has it too, and says it
            sight = engine.take_part(call)
            if reports:
                pickle.dump(sight, answers)
                answers.flush()
    engine.close()


def _read(calls: SimpleQueue[Call | None]) -> None:
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    except EOFError:
        calls.put(None)
        threading.Event().wait(LEAVING)
        os._exit(0)


if __name__ == "__main__":
    main()
