"""Progress in a log file: a line a minute, and nothing of what ends sooner."""

from __future__ import annotations

import time
from typing import Any

import pytest

from workbench.progress import LineProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_short_task_writes_nothing(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = LineProgress()
    bar.start("heads", 10)
    for _ in range(10):
        clock.now += 5.9
        bar.advance()
    bar.finish()
    assert capsys.readouterr().err == ""


def test_a_long_task_writes_a_line_a_minute_with_the_time_left(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = LineProgress()
    bar.start("search", None)
    bar.start("heads", 270)
    for _ in range(40):
        clock.now += 4.5
        bar.advance()
    first, *_, last = lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # 180 s, after 63 s and 126 s
    assert first == "[ 1 min] search, heads: 14 of 270 (5 %), about 19 min left"
    assert last == "[ 2 min] search, heads: 28 of 270 (10 %), about 18 min left"


def test_the_enclosing_task_goes_on_where_the_inner_one_ended(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = LineProgress()
    bar.start("nulls", 2)
    bar.start("heads", 4)
    bar.advance(4)
    bar.finish()
    clock.now += 61
    bar.advance()
    assert capsys.readouterr().err == "[ 1 min] nulls: 1 of 2 (50 %), about 1 min left\n"
