"""The language of positions selects the same tokens whatever the batch, padding, chunks and cache."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.context import ForwardContext, Generation
from workbench.engine.positions import Where, check_positions, select, where
from workbench.errors import NotSupported, UserError

SPECS: list[Any] = [
    "all", "first", "last", "prompt", "generated", "last+generated", "all - first", "prompt[1:3]", "prompt[-2:]",
    "prompt[-1]", "generated[0]", "generated[1:3]", "first+last", "2", "-2", "first+3", "all - 3",
    "content",
    0, 2, -1, -2, slice(1, -1), slice(2, None),
    slice(None, 2),
    [0, -1], lambda ids: ids % 2 == 0, Where("all", tokens=(3, 5)), Where("prompt", exclude="last"),
    Where("all", exclude="prompt"), Where("last+generated", exclude="generated[0]"), Where("generated", tokens=(3,)),
]  # fmt: skip


def expected(spec: Any, prompt: list[int], new: list[int]) -> set[int]:
    """Selected positions of one unpadded row, worked out with plain Python."""
    p, n = len(prompt), len(prompt) + len(new)
    ids = prompt + new
    if isinstance(spec, Where):
        chosen = expected(spec.at, prompt, new)
        if spec.tokens is not None:
            chosen = {i for i in chosen if ids[i] in spec.tokens}
        return chosen - (expected(spec.exclude, prompt, new) if spec.exclude is not None else set())
    named = {
        "all": range(n), "first": range(1), "last": range(p - 1, p), "prompt": range(p), "generated": range(p, n),
        "last+generated": range(p - 1, n), "all - first": range(1, n), "prompt[1:3]": range(p)[1:3],
        "prompt[-2:]": range(p)[-2:], "prompt[-1]": range(p)[-1:], "generated[0]": range(p, n)[:1],
        "generated[1:3]": range(p, n)[1:3], "first+last": [0, p - 1],
        "content": range(1, n),
        "2": [2], "-2": [p - 2], "first+3": [0, 3], "all - 3": {*range(n)} - {3},
    }  # fmt: skip
    if isinstance(spec, str):
        return set(named[spec])
    if isinstance(spec, int):
        return {spec if spec >= 0 else p + spec} & set(range(n))
    if isinstance(spec, slice):
        start = spec.start if (spec.start or 0) >= 0 else p + spec.start
        stop = spec.stop if spec.stop is None or spec.stop >= 0 else p + spec.stop
        return set(range(n)[slice(start, stop)])
    if callable(spec):
        return {i for i, token in enumerate(ids) if token % 2 == 0}
    return set().union(*(expected(one, prompt, new) for one in spec))


def selected(spec: Any, rows: list[tuple[list[int], list[int]]], cuts: list[int], side: str = "left") -> list[set[int]]:
    """Run a padded generation through the engine's contexts in chunks, as prefill, chunked prefill and decode do."""
    columns = max(len(prompt) for prompt, _ in rows)
    pads = [columns - len(prompt) for prompt, _ in rows]
    new = len(rows[0][1])
    ids = torch.tensor(
        [[0] * pad + p + n if side == "left" else p + [0] * pad + n for pad, (p, n) in zip(pads, rows, strict=True)]
    )
    mask = torch.tensor(
        [[0] * pad + [1] * (len(p) + new) if side == "left" else [1] * len(p) + [0] * pad + [1] * new
         for pad, (p, _) in zip(pads, rows, strict=True)]
    )  # fmt: skip
    chosen: list[set[int]] = [set() for _ in rows]
    edges = sorted({0, *(cut for cut in cuts if 0 < cut < ids.shape[1]), ids.shape[1]})
    for start, end in pairwise(edges):
        ctx = ForwardContext(
            batch=len(rows), start=start, length=end - start, device=torch.device("cpu"), input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            generation=Generation(columns, len(rows), mask[:, :columns] if any(pads) else None),
        )  # fmt: skip
        picked = select(spec, ctx)
        took = picked.mask if picked.mask is not None else ctx.real & (not picked.nothing)
        for row, column in took.nonzero().tolist():
            chosen[row].add(int(ctx.index[row, column]))
    return chosen


row = st.integers(2, 6).flatmap(
    lambda p: st.tuples(
        st.lists(st.integers(1, 9), min_size=p, max_size=p), st.lists(st.integers(1, 9), min_size=3, max_size=3)
    )
)


@settings(max_examples=12, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=4), cuts=st.lists(st.integers(1, 9), max_size=4))
@pytest.mark.parametrize("spec", SPECS, ids=[str(i) for i in range(len(SPECS))])
def test_padding_batch_chunks_and_cache_do_not_matter(spec: Any, rows: Any, cuts: list[int]) -> None:
    want = [expected(spec, prompt, new) for prompt, new in rows]
    assert selected(spec, rows, cuts) == want
    assert selected(spec, rows, []) == want
    assert selected(spec, rows[:1], cuts)[0] == want[0]


def plain_forward(**given: Any) -> ForwardContext:
    defaults: dict[str, Any] = {
        "batch": 2, "start": 0, "length": 4, "device": torch.device("cpu"), "input_ids": torch.ones(2, 4).long(),
        "attention_mask": None,
    }  # fmt: skip
    return ForwardContext(**{**defaults, **given})


def test_right_padding_in_a_plain_forward() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert select("last", plain_forward(attention_mask=mask)).mask.nonzero().tolist() == [[0, 1], [1, 3]]
    assert select("all", plain_forward(attention_mask=mask)).mask.sum() == 6


def test_everything_in_a_plain_forward_is_prompt_unless_said_otherwise() -> None:
    assert select("generated", plain_forward()).nothing
    ctx = plain_forward(given_prompt_lengths=torch.tensor([3, 1]))
    assert select("generated", ctx).mask.tolist() == [[False, False, False, True], [False, True, True, True]]


def test_beams_share_the_scope_of_their_prompt() -> None:
    ctx = plain_forward(batch=4, input_ids=torch.ones(4, 4).long(), generation=Generation(4, 2, None))
    mask = select(Where("all", rows=(True, False)), ctx).mask
    assert mask.all(1).tolist() == [True, True, False, False]


@pytest.mark.parametrize("bad", ["lst", "prompt[", "last+gen", slice(0, 4, 2), [], ["last"], 1.5, "generated[]"])
def test_what_is_not_in_the_language_is_refused(bad: Any) -> None:
    with pytest.raises(UserError):
        check_positions(bad)
        select(bad, plain_forward())


def test_rows_must_match_the_batch() -> None:
    with pytest.raises(UserError, match="3 rows but the batch has 2"):
        select(Where("all", rows=(True, False, True)), plain_forward())


def test_saving_and_reading_back() -> None:
    for spec in SPECS:
        scope = where(spec)
        if callable(scope.at):
            with pytest.raises(NotSupported):
                scope.to_json()
        else:
            assert Where.from_json(scope.to_json()) == scope
