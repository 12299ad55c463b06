"""Streamed statistics equal those of all rows at once, drift-free, however the rows are cut."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.recording.statistics import StreamingMoments, TopActivating


def streamed(rows: torch.Tensor, *cuts: int, covariance: bool = False) -> StreamingMoments:
    moments = StreamingMoments(rows.shape[1:], covariance=covariance)
    for part in rows.tensor_split(sorted(cuts)):
        moments.update(part)
    return moments


def test_a_million_float32_rows_far_from_zero_do_not_drift() -> None:
    rows = (torch.randn(1_000_000, 2) + 1e4).float()
    moments = StreamingMoments((2,), covariance=True)
    for chunk in rows.split(1_000):
        moments.update(chunk)
    exact = rows.numpy().astype(np.float64)
    assert moments.count == 1_000_000
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.variance, exact.var(0, ddof=1), rtol=1e-10)
    covariance = np.cov(exact.T)
    assert np.abs(moments.covariance.numpy() - covariance).max() < 1e-10 * covariance.max()
    # The control: sums of squares in float32 lose the variance altogether.
    single = rows.numpy()
    naive = (single**2).mean(0, dtype=np.float32) - single.mean(0, dtype=np.float32) ** 2
    assert np.abs(naive - exact.var(0)).min() > 0.1


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), covariance=st.booleans())
def test_any_cut_and_any_merge_equals_one_pass(cuts: list[int], covariance: bool) -> None:
    rows = torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(1)) * 5 + 100
    whole = streamed(rows, covariance=covariance)
    merged = StreamingMoments((3, 4), covariance=covariance)
    for part in rows.tensor_split(sorted(cuts)):
        merged.merge(streamed(part, covariance=covariance))
    for moments in (streamed(rows, *cuts, covariance=covariance), merged):
        assert moments.count == 60
        torch.testing.assert_close(moments.mean, rows.double().mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(moments.variance, rows.double().var(0), rtol=1e-11, atol=0)
        torch.testing.assert_close(moments.std, whole.std, rtol=1e-11, atol=0)


def test_covariance_is_taken_within_each_head() -> None:
    rows = torch.randn(50, 3, 4)
    found = streamed(rows, 7, 31, covariance=True).covariance
    assert found.shape == (3, 4, 4)
    for head in range(3):
        torch.testing.assert_close(found[head], torch.cov(rows[:, head].double().T))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_every_dtype_is_taken_as_it_is(dtype: torch.dtype) -> None:
    rows = (torch.randn(40, 5) * 3).to(dtype)
    torch.testing.assert_close(streamed(rows, 13).mean, rows.double().mean(0))


def test_large_rows_are_cut_up_without_changing_the_result() -> None:
    rows = torch.randn(9, 1_000_000)
    torch.testing.assert_close(streamed(rows).variance, rows.double().var(0))


def test_tensors_keep_everything() -> None:
    for covariance in (False, True):
        moments = streamed(torch.randn(9, 2), covariance=covariance)
        again = StreamingMoments.from_tensors(moments.as_tensors())
        again.update(torch.ones(1, 2))
        moments.update(torch.ones(1, 2))
        assert again.count == 10 and torch.equal(again.mean, moments.mean)
        assert torch.equal(again.variance, moments.variance)


def test_too_few_rows_and_wrong_shapes() -> None:
    moments = StreamingMoments((2,))
    assert moments.mean.isnan().all()
    moments.update(torch.empty(0, 2))
    assert moments.count == 0
    moments.update(torch.tensor([[1.0, 2.0]]))
    assert moments.mean.tolist() == [1.0, 2.0] and moments.variance.isnan().all()
    with pytest.raises(ValueError, match=r"rows have shape \(3,\); expected \(2,\)"):
        moments.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="cannot be merged"):
        moments.merge(StreamingMoments((3,)))
    with pytest.raises(ValueError, match="covariance=True"):
        _ = moments.covariance
    moments.update(torch.tensor([[float("nan"), 4.0]]))
    assert moments.mean.isnan().tolist() == [True, False]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), k=st.integers(1, 30), order=st.randoms(use_true_random=False))
def test_top_rows_do_not_depend_on_cuts_or_order(cuts: list[int], k: int, order: object) -> None:
    generator = torch.Generator().manual_seed(k)
    values = torch.randint(0, 12, (200,), generator=generator).float()  # many equal values
    prompts, positions = torch.arange(200) // 10, torch.arange(200) % 10
    frame = pd.DataFrame({"value": values.double(), "prompt": prompts, "position": positions, "token": positions + 50})
    wanted = frame.sort_values(["value", "prompt", "position"], ascending=[False, True, True]).head(k)
    parts = list(torch.arange(200).tensor_split(sorted(cuts)))
    order.shuffle(parts)
    top, merged = TopActivating(k), TopActivating(k)
    for part in parts:
        columns = (prompts[part].tolist(), positions[part].tolist(), (positions[part] + 50).tolist())
        alone = TopActivating(k)
        for into in (top, alone):
            into.update(values[part], *columns)
        merged.merge(alone)
    for found in (top, merged):
        pd.testing.assert_frame_equal(found.frame(), wanted.reset_index(drop=True), check_dtype=False)


def test_top_leaves_nan_out_and_checks_lengths() -> None:
    top = TopActivating(3)
    top.update(torch.tensor([1.0, float("nan"), 2.0]), [0, 1, 2], [5, 6, 7], [8, 9, 10])
    assert top.frame().to_dict("list") == {"value": [2.0, 1.0], "prompt": [2, 0], "position": [7, 5], "token": [10, 8]}
    assert len(top) == 2
    with pytest.raises(ValueError, match="2 values came with 1 places"):
        top.update(torch.zeros(2), [0], [0], [0])
    with pytest.raises(ValueError, match="k is 0"):
        TopActivating(0)
