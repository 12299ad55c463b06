"""The page Analyses: every registered probe has a form; one runs in the background and its result shows at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboards import jobs
from dashboards.state import RUN
from tests.dashboards.sample_runs import WORDS, opened, save_pair, shown
from workbench import runs
from workbench.method_index import index

PROBES = sorted(entry.name for entry in index().entries if entry.kind == "probe" and not entry.plugin)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    jobs.desk().clear()


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def wait_for(job: jobs.Job | None) -> jobs.Job:
    assert job is not None
    for thread in threading.enumerate():
        if thread.name == job.name:
            thread.join(120)
    assert job.state != "running"
    return job


def test_every_probe_has_a_form() -> None:
    """None is forgotten, none fails to draw; without models the button is off and says why."""
    app = opened("analyses")
    box = app.selectbox(key="method")
    assert len(box.options) == len(PROBES)
    for name in PROBES:
        app.selectbox(key="method").set_value(name).run()
        assert not app.exception and not app.error, (name, shown(app))
        assert app.button(key="go-method").disabled
        assert any("Give a base model first" in caption.value for caption in app.caption)


def test_a_probe_runs_from_its_form_and_its_result_shows(home: Path, pair_folders: tuple[str, str]) -> None:
    app = opened("analyses")
    app.selectbox(key="method").set_value("lens").run()
    app.text_input(key="method-base").set_value(pair_folders[0])
    app.text_input(key="method-tuned").set_value(pair_folders[1])
    app.text_area(key="method-prompts").set_value("\n".join(WORDS)).run()
    assert not app.button(key="go-method").disabled
    app.number_input(key="option-lens-top").set_value(2)
    app.button(key="go-method").click().run()
    job = wait_for(jobs.desk().job)
    assert job.state == "done", job.said
    app.run()
    assert not app.exception, shown(app)
    assert "Done." in app.success[0].value and len(app.get("plotly_chart")) >= 1
    (run,) = runs.list(home)
    step = json.loads((run.path / "run.json").read_text())["config"]["experiment"]["steps"]["lens"]
    assert step["top"] == 2 and runs.verify(run.path).ok
    assert (run.path / "experiment.yaml").is_file()


def test_what_speaks_against_a_run_is_said_before_it(pair_folders: tuple[str, str], home: Path) -> None:
    app = opened("analyses")
    app.selectbox(key="method").set_value("experts").run()
    app.text_input(key="method-base").set_value(pair_folders[0])
    app.text_input(key="method-tuned").set_value(pair_folders[1])
    app.text_area(key="method-prompts").set_value("\n".join(WORDS)).run()
    button = app.button(key="go-method")
    assert button.disabled and "column 'label'" in button.help
    assert any("label" in caption.value and "no row has one" in caption.value for caption in app.caption)
    assert not runs.list(home)
