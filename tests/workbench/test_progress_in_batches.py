"""Bars move inside a batch of texts too, stop there, and leave texts and bars as they are."""

from __future__ import annotations

from typing import Any

import pytest
from rich.progress import Progress as Bars

from dashboards.jobs import Job
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import behaviour_diff, record
from workbench import progress as module
from workbench.models.pair import ModelPair, load_pair
from workbench.progress import (
    HearsParts,
    LineProgress,
    NotebookProgress,
    RichProgress,
    Silent,
    Stopped,
    listener,
    listening,
)

TEXTS = ["the quick brown fox", "the lazy dog", "jumps over"]


class Heard:
    """A bar that writes down what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def start(self, what: str, total: int | None) -> None:
        self.said.append(("start", total))

    def advance(self, by: int = 1) -> None:
        self.said.append(("advance", by))

    def partly(self, done: float) -> None:
        self.said.append(("partly", done))

    def finish(self) -> None:
        self.said.append(("finish", None))

    @property
    def parts(self) -> list[float]:
        return [value for kind, value in self.said if kind == "partly"]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> ModelPair:
    monkeypatch.setattr(module, "EVERY", 0.0)
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base), tokenizer=tokenizer(), check=False)


def test_a_batch_of_texts_is_heard_token_by_token(pair: ModelPair) -> None:
    heard, silent = Heard(), pair.base.generate(TEXTS, max_new_tokens=8)
    with listening(heard, units=3):
        assert pair.base.generate(TEXTS, max_new_tokens=8) == silent
    assert len(heard.parts) >= 4 and heard.parts == sorted(heard.parts) and 0 < heard.parts[0] < 1
    assert heard.parts[-1] <= 3 and listener() is None


def test_comparisons_and_recordings_hear_their_texts(pair: ModelPair) -> None:
    heard = Heard()
    behaviour_diff(pair, TEXTS, metrics=["repetition"], max_new_tokens=6, progress=heard)
    assert len(heard.parts) >= 6
    heard = Heard()
    record(pair, TEXTS, ["resid_post"], new_tokens=6, progress=heard)
    assert heard.said[0] == ("start", 3) and max(heard.parts) > 1 and ("advance", 3) in heard.said


def test_bars_are_not_told_more_often_than_they_need(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 3600.0)
    heard = Heard()
    with listening(heard):
        pair.base.generate(TEXTS, max_new_tokens=4)
    assert heard.parts == []


def test_a_person_stops_inside_a_batch(pair: ModelPair) -> None:
    job = Job("texts")
    job.start("texts", 2)
    job.stop()
    with pytest.raises(Stopped), listening(job):
        pair.tuned.generate(TEXTS, max_new_tokens=8)
    assert pair.tuned.n_hooks == 0 and listener() is None


def test_parts_move_a_bar_and_the_whole_unit_takes_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    job = Job("texts")
    job.start("texts", 4)
    job.partly(0.5)
    assert job.share == 0.125
    job.advance()
    assert job.share == 0.25
    with RichProgress() as bar:
        bar.start("texts", 4)
        bar.partly(0.5)
        bars: Bars = bar._bars
        assert bars.tasks[0].completed == 0.5
        bar.advance(2)
        assert bars.tasks[0].completed == 2
        bar.finish()
    lines = LineProgress(seconds=0.0)
    lines.start("texts", 4)
    lines.partly(1.0)
    lines.advance(2)
    said = capsys.readouterr().err
    assert "texts: 0 of 4 (25 %)" in said and "texts: 2 of 4 (50 %)" in said
    drawn = NotebookProgress()
    drawn.start("texts", 4)
    drawn.partly(0.5)
    drawn.advance(2)
    assert drawn._bars[0].n == 2
    drawn.finish()
    assert not isinstance(Silent(), HearsParts)
