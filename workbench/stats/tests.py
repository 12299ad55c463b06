"""Tests of "no difference", for one cell or a map of many, without a distribution assumed.

Permutations are enumerated when there are few enough, and drawn with a seed otherwise; a drawn p-value counts
the observed arrangement too (Phipson & Smyth 2010, "Permutation p-values should never be zero").
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from workbench.errors import UserError

DRAWS = 9_999
Alternative = Literal["two-sided", "greater", "less"]
_BLOCK = 2**24


class Tested(NamedTuple):
    """The effect and the p-value of every cell, both ``[*cell]``."""

    effect: np.ndarray
    p: np.ndarray


def paired_permutation(
    differences: np.ndarray, *, draws: int = DRAWS, seed: int = 0, alternative: Alternative = "two-sided"
) -> Tested:
    """Whether differences ``[prompt, *cell]`` of the same prompts are centred on zero, by flipping their
    signs.

    The effect is their mean.
    """
    values, cells = _flat(differences)
    n = len(values)
    if exact := 2**n <= draws:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (draws, n))
    observed = values.mean(0)
    return Tested(observed.reshape(cells), _p(observed, signs / n, values, alternative, exact).reshape(cells))


def permutation(
    first: np.ndarray,
    second: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    alternative: Alternative = "two-sided",
) -> Tested:
    """Whether ``first`` ``[prompt, *cell]`` and ``second`` (other prompts) have one mean, by exchanging
    members.

    The effect is mean(first) - mean(second).
    """
    a, cells = _flat(first)
    b, _ = _flat(second)
    if a.shape[1:] != b.shape[1:]:
        raise UserError(f"The two samples have {a.shape[1]} and {b.shape[1]} cells; give the same cells for both.")
    pooled, n, total = np.concatenate([a, b]), len(a), len(a) + len(b)
    if exact := math.comb(total, n) <= draws:
        members = np.array(list(itertools.combinations(range(total), n)))
    else:
        members = np.random.default_rng(seed).random((draws, total)).argsort(1)[:, :n]
    weights = np.full((len(members), total), -1 / len(b))
    np.put_along_axis(weights, members, 1 / n, axis=1)
    observed = a.mean(0) - b.mean(0)
    return Tested(observed.reshape(cells), _p(observed, weights, pooled, alternative, exact).reshape(cells))


def mann_whitney(first: np.ndarray, second: np.ndarray, *, alternative: Alternative = "two-sided") -> Tested:
    """Mann & Whitney (1947) per cell: ``[prompt, *cell]`` against other prompts.

    The effect is the area under the ROC curve: how often a value of ``first`` exceeds one of ``second``.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    tested = stats.mannwhitneyu(a, b, alternative=alternative, axis=0)
    return Tested(np.asarray(tested.statistic) / (len(a) * len(b)), np.asarray(tested.pvalue))


def _flat(values: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise UserError("There are no prompts to test; give at least one.")
    return array.reshape(len(array), -1), array.shape[1:]


def _p(
    observed: np.ndarray, weights: np.ndarray, values: np.ndarray, alternative: Alternative, exact: bool
) -> np.ndarray:
    """The share of arrangements ``weights @ values`` at least as extreme as ``observed``."""
    hits = np.zeros(len(observed))
    # Arrangements that are equal on paper differ in the last bits; they count as equal.
    slack = 1e-12 * np.abs(values).max(0)
    for rows in range(0, len(weights), width := max(1, _BLOCK // max(1, len(observed)))):
        drawn = weights[rows : rows + width] @ values
        if alternative == "two-sided":
            extreme = np.abs(drawn) >= np.abs(observed) - slack
        else:
            extreme = drawn >= observed - slack if alternative == "greater" else drawn <= observed + slack
        hits += extreme.sum(0)
    p = hits / len(weights) if exact else (hits + 1) / (len(weights) + 1)
    return np.where(np.isnan(observed), np.nan, p)
