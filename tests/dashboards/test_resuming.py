"""A task of a server that was killed goes on in the next one, with the same options and what was complete of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboards import jobs
from dashboards.job_journal import Interrupted, Order
from dashboards.resuming import begin_again
from dashboards.state import RUN
from tests.dashboards.sample_runs import APP, WORDS, save_pair
from workbench import runs
from workbench.errors import UserError

DIES = """
import os, sys
from dashboards import jobs, recording
from dashboards.pair_form import RecordRequest
from workbench.prompts import Prompts

advance, parts = jobs.Job.advance, []

def dying(self, by=1):
    advance(self, by)
    parts.append(by)
    if len(parts) == 2:
        os._exit(9)

jobs.Job.advance = dying
rows = Prompts.of([{"prompt": text, "label": number % 2} for number, text in enumerate(sys.argv[3:])])
recording.begin(RecordRequest(sys.argv[1], sys.argv[2], ("resid_post",), "last", "mine", "cpu"), rows)
jobs.desk().active[0].wait(300)
"""
NO_SITE = {"base": "b", "tuned": "t", "sites": [], "positions": "last", "name": "x"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    for job in jobs.desk().active:
        job.stop()
        job.wait(60)
    jobs.desk().clear()


def next_server(monkeypatch: pytest.MonkeyPatch) -> jobs.Desk:
    """The desk of a server that comes after those before."""
    desk = jobs.Desk()
    monkeypatch.setattr(jobs, "desk", lambda: desk)
    return desk


def killed_while_recording(pair: tuple[str, str]) -> None:
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run([sys.executable, "-c", DIES, *pair, *WORDS * 40],
                           env={**os.environ, "PYTHONPATH": root}, check=False, stderr=subprocess.DEVNULL)  # fmt: skip
    assert ended.returncode == 9


def test_a_recording_of_a_killed_server_goes_on(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = save_pair(tmp_path)
    killed_while_recording(pair)
    (run,) = runs.list(home)
    assert run.state == "interrupted"
    desk = next_server(monkeypatch)
    app = AppTest.from_file(APP, default_timeout=60).run()
    assert any("Recording mine: interrupted" in text.value for text in app.markdown)
    app.button(key="resume-0").click().run()
    assert not app.exception and not app.error
    job = desk.jobs[-1]
    assert job.wait(300) and job.state == "done", job.said
    assert not desk.interrupted
    (run,) = runs.list(home)
    assert run.state == "complete" and runs.verify(run.path).ok


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Order("dream"), "of a kind"),
        (Order("look"), "damaged"),
        (Order("method", {"name": "lens", "base": "b"}), "damaged"),
        (Order("dose", {"base": "b", "tuned": "t", "run": "/nowhere/run", "candidate": "c"}), "/nowhere/run"),
        (Order("recording", {**NO_SITE, "prompts": ["a"]}), "at least one site"),
    ],
)
def test_what_cannot_go_on_says_why_and_stays(order: Order, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=said):
        begin_again(order)
    desk = next_server(monkeypatch)
    desk.interrupted = [Interrupted("It", "record", order)]
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.button(key="resume-0").click().run()
    assert not app.exception and any(said in error.value.replace("\\", "") for error in app.error)
    assert desk.interrupted and not desk.active


def test_steps_of_a_look_are_ordered_as_far_as_they_are_not_done(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step the order is what remains, on the run that holds the steps before."""
    from dashboards.steps import running
    from dashboards.steps.subject import Subject
    from tunescope.look.notes import STEPS
    from workbench.prompts import Prompts

    orders: list[dict[str, Any]] = []

    def noted(desk: jobs.Desk, job: jobs.Job, order: Order) -> None:
        orders.append(order.options)

    class Made:
        config, path = {"dtype": "float32"}, home / "look-it"

    monkeypatch.setattr(jobs.Desk, "goes_on_with", noted)
    monkeypatch.setattr("dashboards.models.pair", lambda *_: object())
    monkeypatch.setattr("tunescope.look.keep.extend", lambda *_: Made())
    rows = Prompts.of([{"prompt": text, "label": "x"} for text in WORDS])
    asked = running.LookRequest("b", "t", rows, seed=3)
    running.begin(Subject("b", "t"), STEPS, asked)
    job = jobs.desk().jobs[-1]
    assert job.order is not None and Prompts.of(job.order.options["prompts"]).hash == rows.hash
    assert job.wait(60) and job.state == "done"
    assert [order["steps"] for order in orders] == [list(STEPS[number:]) for number in (1, 2, 3)]
    assert {order["run"] for order in orders} == {str(home / "look-it")} and {order["seed"] for order in orders} == {3}
