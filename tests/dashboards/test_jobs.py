"""The queue of tasks: one at a time, in order, stopped where they stand, and told after a server was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboards import job_strip, jobs
from dashboards.job_journal import Interrupted, Journal
from dashboards.state import RUN
from tests.dashboards.sample_runs import APP
from workbench.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path))
    monkeypatch.delenv(RUN, raising=False)
    jobs.desk().clear()
    yield tmp_path
    for job in jobs.desk().active:
        job.stop()
        job.wait(60)
    jobs.desk().clear()


class Held:
    """A task that goes on until it is let go, and counts while it does."""

    def __init__(self) -> None:
        self.began, self.leave = threading.Event(), threading.Event()

    def __call__(self, progress: Any) -> str:
        progress.start("counting", 10)
        self.began.set()
        while not self.leave.wait(0.02):
            progress.advance(0)
        return "counted"


def test_tasks_run_one_after_the_other_in_their_order() -> None:
    desk, held, order = jobs.Desk(), Held(), []
    first = desk.begin("first", held)
    held.began.wait(60)
    second = desk.begin("second", lambda _: order.append("second"))
    third = desk.begin("third", lambda _: order.append("third"))
    assert [desk.place(job) for job in (first, second, third)] == [0, 1, 2]
    assert [first.state, second.state, third.state] == ["running", "waiting", "waiting"]
    held.leave.set()
    assert third.wait(60) and first.result == "counted" and order == ["second", "third"]
    assert not desk.active


def test_stop_ends_the_one_that_runs_and_takes_one_that_waits_out_of_the_queue() -> None:
    desk, held, ran = jobs.Desk(), Held(), []
    first = desk.begin("first", held)
    held.began.wait(60)
    second, third = desk.begin("second", lambda _: ran.append(2)), desk.begin("third", lambda _: ran.append(3))
    second.stop()
    assert second.wait(60) and second.state == "stopped" and "queue" in second.said
    first.stop()
    assert third.wait(60) and first.state == "stopped" and ran == [3]


def test_the_same_question_is_asked_once_and_found_again() -> None:
    desk, held = jobs.Desk(), Held()
    first = desk.begin("read", held, key=("read", 1))
    held.began.wait(60)
    assert desk.begin("read", held, key=("read", 1)) is first
    assert desk.begin("other", lambda _: 5, key=("read", 2)) is not first
    held.leave.set()
    assert first.wait(60) and desk.latest(("read", 1)) is first and desk.latest(("read", 3)) is None


def test_a_failed_task_lets_the_next_one_run() -> None:
    desk = jobs.Desk()

    def refused(_progress: Any) -> None:
        raise UserError("This cannot be.")

    first, second = desk.begin("first", refused), desk.begin("second", lambda _: 7)
    assert second.wait(60) and (first.state, first.said, second.result) == ("failed", "This cannot be.", 7)


def test_only_some_ended_tasks_are_remembered() -> None:
    desk = jobs.Desk()
    for number in range(40):
        desk.begin("read", lambda _: 1, is_read=True, key=number).wait(60)
    assert len(desk.jobs) < 12


def test_what_a_killed_server_was_at_is_told_until_it_is_dismissed(home: Path) -> None:
    """Another process dies with one task at work and one in the queue."""
    code = (
        "import os, threading\nfrom dashboards.jobs import Desk\ndesk = Desk()\nbegan = threading.Event()\n"
        "def task(progress):\n    began.set()\n    threading.Event().wait()\n"
        "desk.begin('Where?', task, page='look')\ndesk.begin('Recording mine', task, page='record')\n"
        "began.wait()\nos._exit(9)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False,
                           stderr=subprocess.DEVNULL)  # fmt: skip
    assert ended.returncode == 9
    lost = [Interrupted("Where?", "look"), Interrupted("Recording mine", "record")]
    assert jobs.Desk().interrupted == lost
    desk = jobs.Desk()
    assert desk.interrupted == lost
    desk.dismiss(desk.interrupted[0])
    assert desk.interrupted == lost[1:]
    desk.dismiss(desk.interrupted[0])
    assert jobs.Desk().interrupted == [] and not list(home.iterdir())


def test_a_server_that_lives_is_not_told_of(home: Path) -> None:
    journal = Journal(home)
    journal.write([Interrupted("Where?", "look")])
    assert Journal(home).left_behind() == []
    journal.write([])
    assert not list(home.iterdir())


def test_a_damaged_list_costs_nothing(home: Path) -> None:
    for number, text in enumerate(("", "[", '{"a": 1}', "[1]", json.dumps([{"name": "x"}]))):
        (home / f".dashboard-jobs-{number}.json").write_text(text)
    assert Journal(home).left_behind() == []


def test_every_page_shows_the_queue_with_its_stops() -> None:
    held = Held()
    first = jobs.desk().begin("Where?", held, page="look")
    held.began.wait(60)
    jobs.desk().begin("<b>Second</b>", lambda _: None, page="record")
    for page in ("skills", "runs", "record"):
        app = AppTest.from_file(APP, default_timeout=60).run()
        app.switch_page(f"app_pages/{page}.py").run()
        assert not app.exception
        assert sum(button.label == "Stop" for button in app.button) == 2
        assert any("number 2 in the queue" in text.value and "<b>" not in text.value for text in app.markdown)
    app.button(key=f"stop-{first.number}").click().run()
    assert first.wait(60) and first.state == "stopped"


def test_a_line_says_what_how_far_and_how_long() -> None:
    job = jobs.Job("Where?", stage="Where?")
    assert job_strip.line_of(job) == "**Where?** loading the models…"
    job.start("patching", 20)
    job._part_began -= 10
    job.done = 5
    assert job_strip.line_of(job) == "**Where?** patching: 5 of 20, 30 s left of this part"
