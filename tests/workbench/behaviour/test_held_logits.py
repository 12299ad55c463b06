"""What is held of a vocabulary: a base's logits in memory or in a file, and never the distributions of all rows."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

import workbench as wb
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.behaviour import held_logits, subject
from workbench.behaviour.held_logits import HeldLogits
from workbench.behaviour.scores import kl, rows_at_once
from workbench.behaviour.subject import Work
from workbench.errors import UserError
from workbench.models.pair import load_pair


@pytest.mark.parametrize("room", [0, 10**9])
def test_rows_come_back_as_they_were_put(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_logits, "IN_MEMORY", room)
    logits = torch.randn(7, 33)
    held = HeldLogits(7)
    for rows in ([6, 2, 0], [1, 3], [5, 4]):
        held.put(rows, logits[rows])
    assert torch.equal(held[[4, 4, 0, 6]], logits[[4, 4, 0, 6]])


def test_a_comparison_is_the_same_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tuned_copy(base), tokenizer=tokenizer())
    rows = [{"prompt": "the quick brown fox " * (1 + n % 4)} for n in range(9)]
    tables = []
    for room in (10**9, 0):
        monkeypatch.setattr(held_logits, "IN_MEMORY", room)
        tables.append(wb.behaviour_diff(pair, rows, metrics=["kl", "entropy"], batch_size=4).rows)
    assert (tables[0]["kl"] > 0).any()
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


@contextmanager
def _files_of_at_most(bytes_: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_the_file_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_logits, "IN_MEMORY", 0)
    with _files_of_at_most(1000), pytest.raises(UserError, match="temporary files, which cannot be written"):
        HeldLogits(4).put([0, 1, 2, 3], torch.zeros(4, 200))


def test_divergences_are_made_a_few_rows_at_a_time() -> None:
    """KL of 64 rows of 65,536 words equals that of all at once, in the memory of some of them."""
    torch.manual_seed(0)
    first, second = torch.randn(64, 65_536), torch.randn(64, 65_536)
    whole = torch.nn.functional.kl_div(
        second.double().log_softmax(-1), first.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(kl(first, second), whole)
    assert rows_at_once(65_536) == 64 and rows_at_once(262_144) == 16 and rows_at_once(2**23) == 1


def test_batches_are_small_where_the_vocabulary_is_large() -> None:
    work = Work(32)
    assert work.within_bytes(20, 49_152) is work
    assert work.within_bytes(32, 262_144).batch_size == subject.LOGIT_BYTES // (4 * 32 * 262_144)
    assert work.within_bytes(10_000, 10**6).batch_size == 1
