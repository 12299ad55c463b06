"""highest(): what sorting all tensors together would choose, one tensor at a time."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from probes.grafting.ranking import highest

SHAPES = {"a": (7, 30), "b": (1,), "c": (40, 5), "d": (3, 2, 11)}


def tensors(kind: str, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    if kind == "ties":
        return {name: one.round() for name, one in found.items()}
    if kind == "tiny and huge":
        return {name: one * torch.exp(20 * torch.randn(one.shape, generator=random)) for name, one in found.items()}
    if kind == "zeros of either sign":
        return {name: torch.where(one > 0, 0.0, -0.0) for name, one in found.items()}
    if kind == "infinite":
        return {
            name: torch.where(one > 1, torch.inf, torch.where(one < -1, -torch.inf, one)) for name, one in found.items()
        }
    return found


@pytest.mark.parametrize("kind", ["normal", "ties", "tiny and huge", "zeros of either sign", "infinite"])
@pytest.mark.parametrize("count", [1, 2, 50, 333, 476, 477, 1000])
def test_the_highest_of_all_tensors_ties_by_order(kind: str, count: int) -> None:
    given = tensors(kind, seed=count)
    masks = highest(given.__getitem__, list(given), count)
    flat = torch.cat([value.reshape(-1) for value in given.values()])
    wanted = torch.zeros(len(flat), dtype=torch.bool)
    wanted[flat.argsort(descending=True, stable=True)[:count]] = True
    found = torch.cat([masks[name].reshape(-1) for name in given])
    assert torch.equal(found, wanted)
    assert all(masks[name].shape == SHAPES[name] for name in given)


def test_no_more_than_one_tensor_is_held() -> None:
    given, alive = tensors("normal", 0), []

    def values(name: str) -> torch.Tensor:
        gc.collect()
        assert sum(one() is not None for one in alive) <= 1
        made = given[name].clone()
        alive.append(weakref.ref(made))
        return made

    highest(values, list(given), 100)
    assert len(alive) == 4 * len(given)
