"""The demo's run, once for all tests of the app that need real results."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards import work_on_button
from tunescope.demo.chapter import Settings
from tunescope.demo.small_models import run_demo
from workbench.progress import Silent

SMALL = Settings(pairs=40, steps=80, heads=16)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo's run."""
    return run_demo(SMALL, tmp_path_factory.mktemp("story"), Silent(), lambda _text: None).run.path


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page under test waits for what it reads: nobody looks at the queue meanwhile."""
    monkeypatch.setattr(work_on_button, "PATIENCE", 120.0)
