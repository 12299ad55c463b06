"""Spectra of changes: exact against a plain SVD, estimates inside their interval, controls against draws."""

from __future__ import annotations

import math

import pytest
import torch

from probes.weights.factors import product_ranks
from probes.weights.measure import compare, gaussian_ranks, outlier_q
from probes.weights.spectrum import decay, effective_rank, factored_spectrum, spectrum


def matrix_with(values: torch.Tensor, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator)).Q
    return (left * values) @ right.T


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
@pytest.mark.parametrize("exact", [True, False])
def test_planted_directions_and_values_are_found(shape: tuple[int, int], exact: bool) -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0])
    found = spectrum(matrix_with(values, *shape), k=8, exact=exact)
    assert torch.allclose(found.values[:4], values, rtol=1e-4)
    assert found.stable_rank == pytest.approx(85 / 64, rel=1e-4)
    assert found.effective_rank == pytest.approx(effective_rank(values), rel=1e-3)
    rebuilt = (found.left[:, :4] * found.values[:4]) @ found.right[:, :4].T
    assert torch.allclose(rebuilt, matrix_with(values, *shape), atol=1e-3)


@pytest.mark.parametrize("kind", ["noise", "spiked", "power law"])
@pytest.mark.parametrize("shape", [(256, 256), (512, 300)])
def test_the_estimate_is_close_and_its_interval_holds(kind: str, shape: tuple[int, int]) -> None:
    small = min(shape)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(*shape, generator=generator) * 1e-3
    spikes = torch.randn(shape[0], 6, generator=generator) @ torch.randn(6, shape[1], generator=generator)
    powers = matrix_with(torch.arange(1, small + 1).pow(-1.0), *shape)
    delta = {"noise": noise, "spiked": noise + 1e-3 * spikes, "power law": powers}[kind]
    truth = torch.linalg.svdvals(delta.double())
    found = spectrum(delta, exact=False)
    rank = effective_rank(truth)
    assert found.effective_rank == pytest.approx(rank, rel=0.05)
    margin = found.effective_high - found.effective_low
    assert found.effective_low - margin / 2 <= rank <= found.effective_high + margin / 2
    # without a gap the leading value of pure noise is approached from below
    assert found.values[0] == pytest.approx(float(truth[0]), rel=0.06 if kind == "noise" else 1e-3)


def test_a_giant_direction_does_not_drown_the_rest() -> None:
    values = torch.cat([torch.tensor([1e5]), torch.ones(255)])
    found = spectrum(matrix_with(values, 256, 256).double().float(), exact=False)
    assert found.effective_rank == pytest.approx(effective_rank(values), rel=0.1)


def test_factors_have_the_spectrum_of_their_product() -> None:
    up, down = torch.randn(50, 4), torch.randn(4, 30)
    found, truth = factored_spectrum(up, down), torch.linalg.svdvals(up @ down)
    assert torch.allclose(found.values, truth[:4], rtol=1e-4)
    assert found.effective_rank == pytest.approx(effective_rank(truth[:4]), rel=1e-4)
    assert torch.allclose((found.left * found.values) @ found.right.T, up @ down, atol=1e-4)


def test_ranks_of_simple_spectra_by_hand() -> None:
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    assert decay(torch.arange(1, 9).pow(-1.5)) == pytest.approx(1.5, rel=1e-5)
    assert math.isnan(decay(torch.ones(2)))
    zero = spectrum(torch.zeros(300, 300))
    assert zero.stable_rank == zero.effective_rank == 0


@pytest.mark.parametrize("shape", [(128, 128), (64, 200), (300, 100)])
def test_the_gaussian_control_matches_draws(shape: tuple[int, int]) -> None:
    draws = [torch.linalg.svdvals(torch.randn(*shape, dtype=torch.float64)) for _ in range(10)]
    stable = sum(float((v**2).sum() / v[0] ** 2) for v in draws) / 10
    effective = sum(effective_rank(v) for v in draws) / 10
    control = gaussian_ranks(*shape)
    assert control[0] == pytest.approx(stable, rel=0.06) and control[1] == pytest.approx(effective, rel=0.01)


def test_the_low_rank_control_matches_full_draws() -> None:
    draws = [
        torch.linalg.svdvals(torch.randn(80, 6, dtype=torch.float64) @ torch.randn(6, 50, dtype=torch.float64))[:6]
        for _ in range(200)
    ]
    stable = sum(float((v**2).sum() / v[0] ** 2) for v in draws) / 200
    assert product_ranks(80, 6, 50)[0] == pytest.approx(stable, rel=0.12)
    assert product_ranks(80, 6, 50)[1] == pytest.approx(sum(map(effective_rank, draws)) / 200, rel=0.03)


def test_compare_equals_the_plain_formulas_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.weights.measure._CHUNK", 100)
    base, tuned = torch.randn(37, 23, dtype=torch.bfloat16), torch.randn(37, 23, dtype=torch.bfloat16)
    delta = tuned.double() - base.double()
    for by_column in (False, True):
        change = compare(base, tuned, by_column=by_column)
        axis = 0 if by_column else 1
        assert torch.allclose(change.delta.double(), delta, atol=1e-6)
        assert torch.allclose(change.sums.change, delta.square().sum(axis), rtol=1e-5)
        assert torch.allclose(change.sums.base, base.double().square().sum(axis), rtol=1e-5)
        assert torch.allclose(change.sums.product, (delta * base.double()).sum(axis), atol=1e-4)
        assert change.changed == int((delta != 0).sum())


def test_outliers_are_flagged_and_equals_are_not() -> None:
    scores = torch.cat([torch.rand(60) * 0.1 + 1.0, torch.tensor([3.0])])
    q = outlier_q(scores)
    assert q[-1] < 0.01 and (q[:-1] > 0.05).all()
    assert (outlier_q(torch.ones(10)) == 1).all() and (outlier_q(torch.zeros(10)) == 1).all()
    mostly_zero = outlier_q(torch.tensor([0.0, 0.0, 0.0, 0.2]))
    assert mostly_zero.tolist() == [1.0, 1.0, 1.0, 0.0]
