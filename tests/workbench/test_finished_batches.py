"""Finished batches: read after a stop, equal to the bit, of the same content alone, and gone after a whole run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench import finished_batches
from workbench.errors import UserError
from workbench.files import DamagedWarning
from workbench.finished_batches import batch, clock, counting, resumable, scope


@dataclass
class Counter:
    forward: int = 0


class Work:
    """Three batches, the last of which can be stopped."""

    def __init__(self, stop: BaseException | None = None) -> None:
        self.ran: list[int] = []
        self.stop = stop
        self.counter = Counter()

    def all(self, folder: Path, content: Any = "the model") -> list[Any]:
        with resumable(folder), scope(lambda: content), counting(self.counter):
            return [batch("values", [number, 7], lambda number=number: self._of(number)) for number in range(3)]

    def _of(self, number: int) -> tuple[Any, ...]:
        if self.stop is not None and number == 2:
            raise self.stop
        self.ran.append(number)
        self.counter.forward += 2
        return number, 0.1 + 0.2, {"text": ["é", None, True]}, np.array([np.nan, 1 / 3]), torch.ones(2).bfloat16() / 3


def assert_same(left: Any, right: Any) -> None:
    for one, other in zip(left, right, strict=True):
        assert one[:3] == other[:3] and one[4].dtype == other[4].dtype and torch.equal(one[4], other[4])
        np.testing.assert_array_equal(one[3], other[3])


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_what_was_finished_is_read_and_the_rest_computed(tmp_path: Path, stop: BaseException) -> None:
    whole, again = Work(), Work()
    expected = whole.all(tmp_path / "whole")
    with pytest.raises(type(stop)):
        Work(stop).all(tmp_path / "batches")
    assert_same(again.all(tmp_path / "batches"), expected)
    assert again.ran == [2] and again.counter.forward == whole.counter.forward == 6
    assert not (tmp_path / "whole").exists() and not (tmp_path / "batches").exists()


def test_other_models_or_prompts_read_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Work(KeyboardInterrupt()).all(tmp_path / "batches")
    other = Work()
    other.all(tmp_path / "batches", content="another model")
    assert other.ran == [0, 1, 2]


def test_a_refusal_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Work(UserError("Nothing to localize.")).all(tmp_path / "batches")
    assert not (tmp_path / "batches").exists()


def test_a_damaged_file_is_left_out_with_a_word(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Work(KeyboardInterrupt()).all(tmp_path / "batches")
    (path,) = (tmp_path / "batches").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = Work()
    with pytest.warns(DamagedWarning, match="its batches are done again"):
        assert_same(again.all(tmp_path / "batches"), Work().all(tmp_path / "whole"))
    assert again.ran == [0, 1, 2]


def test_the_same_content_again_is_another_batch(tmp_path: Path) -> None:
    def draw(rng: np.random.Generator, count: int) -> list[float]:
        with resumable(tmp_path), scope(lambda: 0):
            drawn = [batch("draw", "same", rng.random) for _ in range(count)]
            if count < 3:
                raise KeyboardInterrupt
            return drawn

    with pytest.raises(KeyboardInterrupt):
        draw(np.random.default_rng(0), 2)
    first = np.random.default_rng(0).random(2).tolist()
    assert draw(np.random.default_rng(5), 3) == [*first, np.random.default_rng(5).random()]


def test_a_batch_of_batches_is_one_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished_batches, "SECONDS", 0.0)
    ran: list[str] = []

    def of(outer: str) -> list[str]:
        def inner(number: int) -> str:
            if (outer, number, stop) == ("b", 1, True):
                raise KeyboardInterrupt
            ran.append(f"{outer}{number}")
            return f"{outer}{number}"

        return [batch("inner", number, lambda number=number: inner(number)) for number in range(2)]

    def whole() -> list[list[str]]:
        with resumable(tmp_path), scope(lambda: 0):
            return [batch("outer", outer, lambda outer=outer: of(outer)) for outer in "ab"]

    stop = True
    with pytest.raises(KeyboardInterrupt):
        whole()
    stop = False
    assert whole() == [["a0", "a1"], ["b0", "b1"]] and ran == ["a0", "a1", "b0", "b1"]


def test_the_clock_counts_what_was_not_computed_again(tmp_path: Path) -> None:
    def timed(*, stop: bool) -> float:
        with resumable(tmp_path), scope(lambda: 0):
            began = clock()
            batch("sleep", 0, lambda: time.sleep(0.2))
            if stop:
                raise KeyboardInterrupt
            return clock() - began

    with pytest.raises(KeyboardInterrupt):
        timed(stop=True)
    assert timed(stop=False) >= 0.2


def test_outside_a_run_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert batch("values", object(), lambda: object) is object
    with resumable(tmp_path / "batches"):
        assert batch("values", 1, lambda: object) is object
    assert list(tmp_path.iterdir()) == []
