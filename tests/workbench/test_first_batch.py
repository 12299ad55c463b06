"""Costs from the first batch: short phases run, the first long one stops, at the pace of what was done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workbench.first_batch import FirstBatches, timed
from workbench.progress import Progress


class Clock:
    """Seconds that the test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def task(bar: Progress, pass_by: Callable[[float], None]) -> str:
    for what, units, each in (("recording", 4, 1.0), ("patching", 100, 2.0), ("never", 1, 1.0)):
        bar.start(what, units)
        for _ in range(units):
            pass_by(each)
            bar.advance()
        bar.finish()
    return "done"


def test_the_first_long_phase_is_measured_and_stopped() -> None:
    clock = Clock()
    bar = FirstBatches(long=10.0, clock=clock)

    def pass_by(seconds: float) -> None:
        clock.now += seconds

    with pytest.raises(Exception, match=r"^$"):
        task(bar, pass_by)
    assert [(phase.what, phase.done, phase.expected) for phase in bar.phases] == [
        ("recording", 4, 4.0), ("patching", 1, 200.0)
    ]  # fmt: skip


def test_a_short_task_runs_to_its_end() -> None:
    phases, whole = timed(lambda bar: task(bar, lambda _: None))
    assert whole and [phase.what for phase in phases] == ["recording", "patching", "never"]
    phases, whole = timed(lambda bar: task(bar, lambda _: None), long=-1.0)
    assert not whole and [phase.done for phase in phases] == [1]


def test_errors_of_the_task_are_its_own() -> None:
    def fails(bar: Progress) -> None:
        bar.start("x", 1)
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        timed(fails)
