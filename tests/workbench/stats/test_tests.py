"""Permutation and rank tests: exact where scipy is exact, uniform under the null, never zero."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workbench.errors import UserError
from workbench.stats import mann_whitney, paired_permutation, permutation
from workbench.stats.fdr import q_values


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_few_prompts_give_scipys_exact_p(alternative: str) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.8, 1, (5, 6)), random.normal(0, 1, (4, 6))
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), alternative=alternative, n_resamples=np.inf
    )
    ours = permutation(a, b, alternative=alternative)
    assert ours.effect == pytest.approx(a.mean(0) - b.mean(0))
    if alternative == "two-sided":  # scipy doubles the smaller tail; ours counts both
        assert ((theirs.pvalue / 2.1 <= ours.p) & (ours.p <= theirs.pvalue * 1.5)).all()
    else:
        assert ours.p == pytest.approx(theirs.pvalue)


def test_sign_flips_are_exact_by_hand() -> None:
    found = paired_permutation(np.array([[1.0, 1.0], [2.0, -2.0], [3.0, 3.0]]))
    assert found.effect == pytest.approx([2.0, 2 / 3])
    # Of the 8 signings, +++ and --- reach |6|; for sums of |2|: all but those whose sum is 0.
    assert found.p == pytest.approx([2 / 8, 6 / 8])
    assert paired_permutation(np.array([1.0, 2.0, 3.0]), alternative="greater").p == pytest.approx(1 / 8)


@pytest.mark.parametrize("name", ["paired", "unpaired", "ranks"])
def test_p_is_uniform_when_there_is_nothing(name: str) -> None:
    random = np.random.default_rng(1)
    a, b = random.exponential(size=(20, 1_500)), random.exponential(size=(20, 1_500))
    p = {
        "paired": lambda: paired_permutation(a - b, draws=999).p,
        "unpaired": lambda: permutation(a, b, draws=999).p,
        "ranks": lambda: mann_whitney(a, b).p,
    }[name]()
    assert p.min() > 0
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level / 1_500))
    assert (q_values(p) < 0.05).sum() == 0


def test_a_real_difference_is_found_among_many_cells() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=(40, 8, 8)), random.normal(size=(40, 8, 8))
    a[:, 3, 5] += 1.5
    for found in (permutation(a, b), paired_permutation(a - b), mann_whitney(a, b)):
        assert found.p.shape == found.effect.shape == (8, 8)
        assert np.argwhere(q_values(found.p) < 0.05).tolist() == [[3, 5]]
    assert mann_whitney(a, b).effect[3, 5] == pytest.approx((a[:, None, 3, 5] > b[None, :, 3, 5]).mean())


def test_seeds_repeat_and_mistakes_are_named() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 30, 2))
    assert np.array_equal(permutation(a, b, seed=4).p, permutation(a, b, seed=4).p)
    with pytest.raises(UserError, match="2 and 1 cells"):
        permutation(a, b[:, :1])
    with pytest.raises(UserError, match="no prompts"):
        paired_permutation(np.empty((0, 3)))
    holes = paired_permutation(np.array([[1.0, np.nan], [2.0, 1.0]]))
    assert np.isnan(holes.p).tolist() == [False, True]


def test_q_values_of_the_textbook_example() -> None:
    # Benjamini & Hochberg (1995), table 1: 15 comparisons, of which the procedure rejects the first four at
    # 0.05.
    p = np.array(
        [.0001, .0004, .0019, .0095, .0201, .0278, .0298, .0344, .0459, .3240, .4262, .5719, .6528, .7590, 1.0]
    )  # fmt: skip
    q = q_values(p)
    assert (q <= 0.05).sum() == 4
    assert q[:4] == pytest.approx([0.0015, 0.003, 0.0095, 0.035625])
    assert q_values(p[::-1])[::-1] == pytest.approx(q)
    assert (q_values(p, method="by") >= q).all()


def test_untested_cells_do_not_count() -> None:
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    q = q_values(p)
    assert np.isnan(q).tolist() == [[False, True], [False, False]]
    assert q[~np.isnan(q)] == pytest.approx([0.03, 0.04, 0.04])
    assert np.isnan(q_values(np.full(3, np.nan))).all()
