"""Recorded rows share large pieces of memory: never two living tensors the same bytes, and nothing more than asked."""

from __future__ import annotations

import gc
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tokenizer
from workbench.models.adapted import AdaptedModel
from workbench.recording import row_memory
from workbench.recording.record_pair import record
from workbench.recording.row_memory import LARGE, PIECE_BYTES, SPARE_BYTES, RowMemory, Spare


@pytest.fixture(autouse=True)
def spare(monkeypatch: pytest.MonkeyPatch) -> Spare:
    made = Spare()
    monkeypatch.setattr(row_memory, "SPARE", made)
    return made


def span(one: torch.Tensor) -> range:
    return range(one.data_ptr(), one.data_ptr() + one.nbytes)


def test_tensors_of_any_shape_and_dtype_lie_side_by_side() -> None:
    memory, random = RowMemory(), np.random.default_rng(0)
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    shapes = [tuple(random.integers(0, 40, size=random.integers(0, 4))) for _ in range(400)]
    made = [memory.empty(torch.Size(shape), dtypes[i % len(dtypes)]) for i, shape in enumerate(shapes)]
    for one, shape in zip(made, shapes, strict=True):
        assert one.shape == shape and one.is_contiguous() and one.data_ptr() % one.dtype.itemsize == 0
    spans = sorted((span(one).start, span(one).stop) for one in made if one.nbytes)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_a_tensor_keeps_its_values_while_later_rows_come_and_go(spare: Spare) -> None:
    kept = RowMemory().empty(torch.Size([1000]), torch.float32).fill_(1.0)
    for _ in range(20):
        memory = RowMemory()
        for _ in range(12):
            memory.empty(torch.Size([LARGE // 8]), torch.float32).fill_(2.0)
    assert bool((kept == 1.0).all())
    assert spare.nbytes, "the pieces of the rows that are gone wait for others"


def test_a_piece_is_used_again_only_when_the_last_tensor_in_it_is_gone(spare: Spare) -> None:
    memory = RowMemory()
    first, second = (memory.empty(torch.Size([8]), torch.float32) for _ in range(2))
    place, view = first.data_ptr(), second[2:4]
    del memory, first, second
    gc.collect()
    assert not spare.nbytes
    del view
    gc.collect()
    assert spare.nbytes == PIECE_BYTES
    assert RowMemory().empty(torch.Size([8]), torch.float32).data_ptr() == place


def test_a_large_tensor_has_a_piece_of_its_own(spare: Spare) -> None:
    memory = RowMemory()
    small, large = memory.empty(torch.Size([8]), torch.float32), memory.empty(torch.Size([LARGE + 1]), torch.uint8)
    place = large.data_ptr()
    del large
    gc.collect()
    assert LARGE < spare.nbytes < LARGE + 2 * row_memory.HUGE_PAGE
    assert row_memory.empty(torch.Size([LARGE + 2]), torch.uint8).data_ptr() == place
    assert small.data_ptr() != place


def test_what_is_saved_of_one_tensor_is_that_tensor() -> None:
    one = RowMemory().empty(torch.Size([16]), torch.float32).fill_(3.0)
    assert one.untyped_storage().nbytes() == one.nbytes
    written = pickle.dumps(one)
    assert len(written) < PIECE_BYTES / 100 and torch.equal(pickle.loads(written), one)


def test_no_more_memory_waits_than_the_limit(spare: Spare) -> None:
    memory = RowMemory()
    sizes = [LARGE - 64] * 20 + [LARGE] * 20 + [5 * LARGE] * 10
    rows = [memory.empty(torch.Size([size]), torch.uint8) for size in sizes]
    del rows, memory
    gc.collect()
    assert SPARE_BYTES - 5 * LARGE < spare.nbytes <= SPARE_BYTES


def test_a_recording_outlives_later_ones() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    prompts = ["the cat sat", "a dog ran"]
    first = record(model, prompts[:1], ["z", "resid_post"], positions="all")
    before = {site: first[model.role][site].clone() for site in first.sites}
    for _ in range(5):
        record(model, prompts[1:], ["z", "resid_post"], positions="all")
    assert all(torch.equal(first[model.role][site], value) for site, value in before.items())
