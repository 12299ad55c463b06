"""Curves of a known shape are named, and too few prompts leave it open."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from workbench.behaviour.dose_shape import shape_of
from workbench.errors import UserError

STEPS = np.linspace(0, 2, 9)


def curve(mean: Callable[[np.ndarray], np.ndarray], noise: float = 0.1, prompts: int = 60, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    own = draw.normal(size=(1, prompts))  # prompts differ in level, not in shape
    return np.asarray(mean(STEPS)[:, None] + own + noise * draw.normal(size=(len(STEPS), prompts)))


@pytest.mark.parametrize(
    ("mean", "name"),
    [
        (lambda s: 0.7 * s, "linear"),
        (lambda s: -0.7 * s, "linear"),
        (lambda s: 1 - np.exp(-3 * s), "saturating"),
        (lambda s: s * np.exp(1 - 2 * s) * 2, "overshooting"),
        (lambda s: -s * np.exp(1 - 2 * s) * 2, "overshooting"),
        (lambda s: 0 * s, "flat"),
    ],
)
def test_known_shapes(mean: Callable[[np.ndarray], np.ndarray], name: str) -> None:
    found = shape_of(STEPS, curve(mean))
    assert found.name == name, str(found)
    assert found.change.low <= found.change.estimate <= found.change.high


def test_noise_leaves_the_shape_open() -> None:
    assert shape_of(STEPS, curve(lambda s: 0.7 * s, noise=4.0, prompts=12)).name in ("undecided", "flat")
    assert shape_of(STEPS, curve(lambda s: 0.7 * s, prompts=4)).name == "undecided"


def test_three_strengths_have_no_shape() -> None:
    with pytest.raises(UserError, match="at least 4"):
        shape_of(STEPS[:3], curve(lambda s: s)[:3])
