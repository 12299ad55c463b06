"""Random stand-ins match what they stand in for, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from workbench.errors import UserError
from workbench.stats import against_controls, random_directions, random_subspaces, random_units

CHOSEN = [(0, 1), (2, 3), (2, 0), (5, 7)]


def test_random_units_match_the_count_in_every_layer() -> None:
    drawn = random_units(CHOSEN, [8] * 6, draws=200, seed=1)
    wanted = Counter(layer for layer, _ in CHOSEN)
    for units in drawn:
        assert Counter(layer for layer, _ in units) == wanted
        assert len(set(units)) == len(units) == 4 and not set(units) & set(CHOSEN)
    # Every other unit of a layer is drawn about equally often.
    seen = Counter(unit for units in drawn for layer, unit in units if layer == 2)
    assert set(seen) == {1, 2, 4, 5, 6, 7}
    assert min(seen.values()) > 40 and max(seen.values()) < 95
    assert drawn == random_units(CHOSEN, dict.fromkeys(range(6), 8), draws=200, seed=1)
    assert drawn != random_units(CHOSEN, [8] * 6, draws=200, seed=2)


def test_a_layer_with_too_few_others_is_drawn_from_as_a_whole() -> None:
    chosen = [(0, 0), (0, 1), (0, 2)]
    drawn = random_units(chosen, [4], draws=50)
    assert {unit for units in drawn for unit in units} == {(0, 0), (0, 1), (0, 2), (0, 3)}
    overlapping = random_units([(0, 0)], [4], draws=200, overlap=True)
    assert {units[0][1] for units in overlapping} == {0, 1, 2, 3}


def test_fewer_than_ten_draws_and_unknown_units_are_refused() -> None:
    for call in (
        lambda: random_units(CHOSEN, [8] * 6, draws=9),
        lambda: random_directions(torch.ones(3), draws=9),
        lambda: against_controls(1.0, [0.0] * 9),
    ):
        with pytest.raises(UserError, match="at least 10 random draws; got 9"):
            call()
    with pytest.raises(UserError, match=r"no unit 7 in layer 5 \(it has 4\)"):
        random_units(CHOSEN, [4] * 6)
    with pytest.raises(UserError, match="4 dimensions does not fit into 3"):
        random_subspaces(torch.ones(4, 3))


def test_random_directions_have_the_norms_and_no_preference() -> None:
    like = torch.randn(3, 64) * torch.tensor([[0.1], [1.0], [50.0]])
    drawn = random_directions(like, draws=400, seed=3)
    assert drawn.shape == (400, 3, 64) and drawn.dtype == like.dtype
    torch.testing.assert_close(drawn.norm(dim=-1), like.norm(dim=-1).expand(400, 3))
    cosine = torch.cosine_similarity(drawn, like[None], dim=-1)
    assert cosine.mean().abs() < 0.02
    assert cosine.std() == pytest.approx(1 / 8, rel=0.1)  # 1 / sqrt(64), as for isotropic vectors
    assert torch.equal(drawn, random_directions(like, draws=400, seed=3))
    assert random_directions(like.to(torch.bfloat16)).dtype == torch.bfloat16


def test_random_subspaces_are_orthonormal_and_isotropic() -> None:
    drawn = random_subspaces(torch.randn(3, 16), draws=300)
    torch.testing.assert_close(drawn @ drawn.mT, torch.eye(3).expand(300, 3, 3), atol=1e-5, rtol=0)
    mean_projection = (drawn.mT @ drawn).mean(0)
    torch.testing.assert_close(mean_projection, torch.eye(16) * 3 / 16, atol=0.06, rtol=0)


def test_observed_beside_controls() -> None:
    found = against_controls(5.0, np.arange(20))
    assert (found.mean, found.draws) == (9.5, 20)
    assert found.p == 16 / 21
    assert against_controls(100.0, np.arange(20)).p == 1 / 21
    assert (found.low, found.high) == pytest.approx((0.475, 18.525))
