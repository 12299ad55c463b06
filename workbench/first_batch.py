"""What a long task costs, from its first batch: it runs until one of its phases turns out to be long, then stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.progress import Stopped

LONG = 10.0
"""Seconds; a phase that ends sooner is run to its end, so that the next one is measured too."""


class _Enough(Stopped):
    """The first batch of a long phase is over."""


@dataclass
class Phase:
    """One bar of a task."""

    what: str
    units: int | None
    done: int = 0
    seconds: float = 0.0
    """Since it began."""

    @property
    def expected(self) -> float | None:
        """Seconds that all its units take at the pace of those that are done; None before the first."""
        if not self.done:
            return None
        return self.seconds * max(1.0, (self.units or self.done) / self.done)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"phase": self.what, "units": self.units, "measured": self.done, "seconds": self.expected}


class FirstBatches:
    """A :class:`workbench.progress.Progress` that times every phase, and stops the task in the first long one."""

    def __init__(self, long: float = LONG, clock: Callable[[], float] = time.perf_counter) -> None:
        """``long``: seconds from which a phase is not run to its end."""
        self.phases: list[Phase] = []
        self._long, self._clock = long, clock
        self._began = clock()

    def start(self, what: str, total: int | None) -> None:
        self.phases.append(Phase(what, total))
        self._began = self._clock()

    def advance(self, by: int = 1) -> None:
        if not self.phases:
            return
        phase = self.phases[-1]
        phase.done += by
        phase.seconds = self._clock() - self._began
        if (phase.expected or 0.0) > self._long:
            raise _Enough

    def finish(self) -> None: ...


def timed(task: Callable[[FirstBatches], Any], long: float | None = None) -> tuple[list[Phase], bool]:
    """Run ``task`` until the first batch of a long phase.

    Args:
        task: Called with the progress that it must report to.
        long: Seconds from which a phase is long; by default :data:`LONG`.

    Returns:
        The phases with what each takes, and whether the task came to its end.

    Example:
        ``phases, whole = timed(lambda progress: probes.patching(pair, prompts, progress=progress))``
    """
    bar = FirstBatches(LONG if long is None else long)
    try:
        task(bar)
    except _Enough:
        return bar.phases, False
    return bar.phases, True
