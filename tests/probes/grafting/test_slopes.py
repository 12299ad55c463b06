"""Slopes in half precision: sums as in float64, whatever the size of what is added, and nothing hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.grafting import search as searching
from probes.grafting.packing import Packed
from probes.grafting.regions import Region, region_of
from probes.grafting.search import Settings, search
from probes.grafting.slopes import Slopes
from probes.grafting.units import Units
from tests.probes.grafting.planted import planted


def region(*shape: int) -> Region:
    return region_of({"w": torch.zeros(shape)}, {"w": torch.ones(shape)})


def summed(*values: torch.Tensor) -> torch.Tensor:
    slopes = Slopes(Units(region(*values[0].shape)))
    for value in values:
        slopes.add("w", value)
    return slopes.read("w")


def test_half_a_copy_is_held() -> None:
    slopes = Slopes(Units(region(64, 64)))
    assert slopes._stored["w"].nbytes == 64 * 64 * 2 and slopes.read("w").dtype == torch.float32


def test_a_hundred_batches_add_up_as_in_float64() -> None:
    """bfloat16, which needs no scale, is off by several times as much."""
    random = torch.Generator().manual_seed(0)
    drift = torch.randn(50, 40, generator=random) * torch.logspace(-6, 0, 40)
    batches = [1e-7 * drift * (1 + 0.5 * torch.randn(50, 40, generator=random)) for _ in range(128)]
    exact = torch.stack(batches).double().sum(0)
    off = ((summed(*batches) - exact) / exact).abs()
    assert float(off.max()) < 0.01 and float(off.median()) < 0.002
    coarse = torch.zeros(50, 40, dtype=torch.bfloat16)
    for batch in batches:
        coarse += batch.bfloat16()
    assert float(((coarse - exact) / exact).abs().median()) > 5 * float(off.median())


@settings(deadline=None, max_examples=200)
@given(exponents=st.lists(st.integers(-120, 120), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_an_error_is_one_rounding_per_batch_at_any_size(exponents: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(30, generator=random) * 2.0**power for power in exponents]
    exact, allowed = torch.zeros(30).double(), torch.zeros(30).double()
    for value in values:
        exact += value
        allowed = allowed + (exact.abs() + allowed) * 2.0**-11 + exact.abs().max() * 2.0**-39
    assert bool(((summed(*values).double() - exact).abs() <= allowed + 2.0**-149).all())


def test_zero_first_then_growth_a_million_fold_and_back() -> None:
    tensor = torch.tensor([1.0, -2.0, 0.0, 3.0])
    small, large = 1e-12 * tensor, 1e6 * tensor.flip(0)
    torch.testing.assert_close(summed(torch.zeros(4), small), small, rtol=2**-11, atol=0)
    torch.testing.assert_close(summed(small, large), small + large, rtol=2**-11, atol=1e-12 * 1e6)
    torch.testing.assert_close(summed(torch.zeros(4), torch.zeros(4)), torch.zeros(4))
    top = torch.tensor([3.4e38, 1.0])
    assert bool(summed(top).isfinite().all()) and float(summed(top)[0]) == pytest.approx(float(top[0]), rel=2**-11)


def test_scaling_by_powers_of_two_rounds_nothing() -> None:
    exact = torch.tensor([1.0, 1.5, -1.25, 2.0**-9 * 3])
    for power in range(-120, 120):
        assert torch.equal(summed(exact * 2.0**power), exact * 2.0**power)


def test_fading_is_momentum_and_zero_begins_anew() -> None:
    slopes = Slopes(Units(region(200)))
    random, exact = torch.Generator().manual_seed(0), torch.zeros(200).double()
    for _ in range(40):
        one = torch.randn(200, generator=random)
        slopes.fade(0.9)
        slopes.add("w", one)
        exact = 0.9 * exact + one
    torch.testing.assert_close(slopes.read("w").double(), exact, rtol=0.01, atol=0.002)
    slopes.zero()
    assert torch.equal(slopes.read("w"), torch.zeros(200))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_visible_until_zero(bad: float) -> None:
    slopes = Slopes(Units(region(3)))
    slopes.add("w", torch.tensor([1.0, bad, 2.0]))
    assert not bool(slopes.read("w")[1].isfinite())
    slopes.add("w", torch.ones(3))
    assert not bool(slopes.read("w")[1].isfinite())
    slopes.zero()
    slopes.add("w", torch.ones(3))
    assert torch.equal(slopes.read("w"), torch.ones(3))


def test_units_that_span_parts_are_added_together_and_the_reserved_one_stays_zero() -> None:
    numbers = {"a": torch.tensor([[0], [1], [2]]), "b": torch.tensor([2, 2, 0])}
    base = {"a": torch.zeros(3, 4), "b": torch.zeros(3)}
    tuned = {name: one + 1 for name, one in base.items()}
    spanning = region_of(base, tuned, lambda name, _: numbers[name], reserved=True)
    slopes = Slopes(Units(spanning))
    slopes.add("a", torch.tensor([[9.0], [1.0], [2.0]]))
    slopes.add("b", torch.tensor([4.0, 8.0, 9.0]))
    assert slopes.read("").tolist() == [0.0, 1.0, 14.0]


class Whole(Slopes):
    """The same in float32."""

    def __init__(self, like: Units) -> None:
        super().__init__(like)
        self._stored = {key: flat.float() for key, flat in self._stored.items()}

    def read(self, key: str) -> torch.Tensor:
        return self._stored[key] * self._scale[key]


class Coarse(Slopes):
    """Rounded to 3 bits: too few."""

    def add(self, name: str, values: torch.Tensor) -> None:
        super().add(name, values)
        stored = self._stored[self.region.key(name)]
        mantissa, exponent = torch.frexp(stored.float())
        stored.copy_(torch.ldexp((mantissa * 8).round() / 8, exponent))


@pytest.mark.parametrize(
    ("method", "seed", "options"),
    [
        ("optimised", 0, {"sparsity": 0.1}),
        ("adaptive", 0, {"start": "empty", "penalty": 1e-7}),
        ("adaptive", 1, {"start": "empty", "penalty": 1e-7}),
    ],
)
def test_half_precision_finds_the_mask_of_single(
    method: str, seed: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With far more entries than the planted, so that many are near the threshold; three bits are told apart."""

    def found(kind: type[Slopes]) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(searching, "Slopes", kind)
        net = planted(seed)
        return search(net.blender, net.train, method, Settings(**options)).mask  # type: ignore[arg-type]

    half, single, coarse = found(Slopes), found(Whole), found(Coarse)
    chosen = sum(int(value.sum()) for value in single.values())
    assert chosen > 100
    assert differing(half, single) == 0 < differing(coarse, single)


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    return sum(int((one[name] ^ other[name]).sum()) for name in one)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (4, 9, 2), (16, 16)])
def test_a_mask_is_packed_to_a_bit_per_entry_and_comes_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = Packed.of(mask)
    assert packed.bits.nbytes == -(-mask.numel() // 8) and torch.equal(packed.mask(), mask)
