"""The page Record: a recording from the app, its stop, and where it may go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dashboards import as_experiment, jobs
from dashboards.pair_form import RecordRequest, pasted, uploaded
from dashboards.selection import pairs_of
from dashboards.state import RUN
from tests.dashboards.sample_runs import WORDS, opened, save_pair, shown
from tunescope.experiments.schema import Experiment
from workbench import runs
from workbench.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    jobs.desk().clear()


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def record_request(pair_folders: tuple[str, str], **changed: object) -> RecordRequest:
    given: dict[str, object] = {"sites": ("resid_post", "z"), "positions": "last", "name": "mine", "device": "cpu"}
    return RecordRequest(*pair_folders, **{**given, **changed})  # type: ignore[arg-type]


def test_a_pair_is_recorded_from_the_page_and_shows_at_once(home: Path, pair_folders: tuple[str, str]) -> None:
    app = opened("record")
    app.text_input(key="pair-base").set_value(pair_folders[0])
    app.text_input(key="pair-tuned").set_value(pair_folders[1])
    app.text_area(key="pair-prompts").set_value("\n".join(WORDS))
    app.button(key="go-record").click().run()
    assert not app.exception and not app.error, shown(app)
    wait_for(jobs.desk().job)
    app.run()
    assert app.success[0].value == "Recording my\\-pair: done."
    assert "Open it" in str(app.get("page_link")[0].proto)
    app.switch_page("app_pages/overview.py").run()
    assert not app.exception and app.selectbox(key="run").value == "my-pair"
    assert "resid_post" in app.metric[0].label.replace("\\", "") or "hook" in app.metric[0].label
    assert runs.verify(home / "my-pair").ok
    assert pairs_of(home / "my-pair")["pair"].base == pair_folders[0]
    app.switch_page("app_pages/steer.py").run()
    assert app.text_area(key="prompts").value.splitlines() == list(WORDS[:6])


def wait_for(job: jobs.Job | None) -> jobs.Job:
    assert job is not None
    for thread in threading.enumerate():
        if thread.name == job.name:
            thread.join(120)
    assert job.state != "running"
    return job


def test_stop_really_stops_and_the_same_recording_goes_on(home: Path, pair_folders: tuple[str, str]) -> None:
    """Stopped after its first step; asked again, it ends with the same bytes as one that was never stopped."""
    rows, wanted = pasted("\n".join(WORDS * 8)), record_request(pair_folders)
    job = jobs.Job("mine")
    real = job.advance

    def stop_at_once(by: int = 1) -> None:
        job.stop()
        real(by)

    job.advance = stop_at_once  # type: ignore[method-assign]
    job.run(lambda progress: wanted.record(rows, progress))
    assert job.state == "stopped" and "goes on" in job.said
    assert runs.open(home / "mine").state == "failed"
    again, whole = jobs.Job("mine"), jobs.Job("whole")
    again.run(lambda progress: wanted.record(rows, progress))
    whole.run(lambda progress: record_request(pair_folders, name="whole").record(rows, progress))
    assert (again.state, whole.state) == ("done", "done")
    files = [runs.open(home / name).manifest.files for name in ("mine", "whole")]
    assert files[0] == files[1]


def test_a_job_on_a_full_gpu_ends_with_a_sentence() -> None:
    def full(_progress: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 4 GiB in all.")

    job = jobs.Job("mine")
    job.run(full)
    assert job.state == "failed" and job.said.startswith("The GPU's memory ran out (CUDA out of memory. Tried")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "", ".", "..", "a\0b", ".hidden", "x" * 200, "a b"])
def test_a_recording_goes_into_the_home_and_nowhere_else(pair_folders: tuple[str, str], name: str, home: Path) -> None:
    with pytest.raises(UserError, match="no name of a run"):
        record_request(pair_folders, name=name).check()
    assert not home.exists()


def test_a_link_in_the_home_does_not_lead_a_recording_out(
    pair_folders: tuple[str, str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    home.mkdir()
    (home / "mine").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match="leads out"):
        record_request(pair_folders).check()


def test_prompts_of_a_person_are_read_or_refused_in_a_sentence() -> None:
    assert [row.prompt for row in pasted("one\n\ntwo\n")] == ["one", "two"]
    assert pasted('{"prompt": "one", "answer": "x"}')[0].answer == "x"
    assert len(uploaded("../../x.csv", b"prompt,answer\none,x\n")) == 1
    for wrong in (lambda: pasted(" \n"), lambda: pasted('{"prompt": }'), lambda: uploaded("x.exe", b"MZ"),
                  lambda: uploaded("x.jsonl", b"\xff\xfe"), lambda: uploaded("x.txt", b"")):  # fmt: skip
        with pytest.raises(UserError):
            wrong()


def test_a_wrong_pair_ends_as_one_sentence_and_leaves_nothing(home: Path) -> None:
    app = opened("record")
    app.text_input(key="pair-base").set_value("/no/such/model")
    app.text_input(key="pair-tuned").set_value("/no/such/tuned")
    app.text_area(key="pair-prompts").set_value("the fox")
    app.button(key="go-record").click().run()
    wait_for(jobs.desk().job)
    app.run()
    assert not app.exception and len(app.error) == 1 and "/no/such" in shown(app)
    assert not home.exists() or not any(home.iterdir())


def test_a_recording_is_an_experiment_too(pair_folders: tuple[str, str]) -> None:
    recording = as_experiment.record_experiment(record_request(pair_folders), pasted("one\ntwo"))
    assert list(Experiment.parse(recording).steps) == ["record"]
