"""A real server is killed in the middle of the four steps; the next one resumes them in a browser."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.served import served
from tests.dashboards.test_browser import CHROMIUM, browser, no_errors, page, settled
from tests.dashboards.test_newcomer_browser import LONG, give_prompts, opened_on_the_pair
from tests.tunescope.look.test_steps import refusal_rows
from workbench import organisms, runs

__all__ = ["browser", "page"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing: apt-get install chromium"),
]


def until(page: Any, happened: Callable[[], Any], seconds: float = 300) -> None:
    """Wait while the page goes on; what is waited for may be there for too short a time to be seen on the page."""
    ends = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends, "the first step has kept no result"
        page.wait_for_timeout(20)


def test_four_steps_go_on_after_the_server_was_killed(page: Any, tmp_path: Path) -> None:
    grown = organisms.build("refusal-moe")
    pair, home, rows = (str(grown.base), str(grown.tuned)), tmp_path / "runs", tmp_path / "questions.jsonl"
    refusal_rows().save(rows)
    with served(home, *pair) as (address, server):
        opened_on_the_pair(page, address)
        give_prompts(page, rows)
        page.get_by_role("button", name="Run all four steps").click()
        until(page, lambda: list(home.glob("*/results/*.safetensors")))
        os.kill(server, signal.SIGKILL)
    (begun,) = runs.list(home)
    with served(home, *pair) as (address, _):
        page.goto(address)
        page.get_by_text("The four steps: interrupted").wait_for()
        page.get_by_role("button", name="Resume").click()
        page.get_by_text("Recipes:").first.wait_for(timeout=LONG)
        settled(page)
        no_errors(page)
        assert page.get_by_role("button", name="Resume").count() == 0
    (run,) = runs.list(home)
    assert run.path == begun.path and run.state == "complete"
