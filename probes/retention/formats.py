"""A grammar of prompt formats that mean the same, and a bandit that finds the best and the worst of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.typing import Float

DESCRIPTORS = (("Question", "Answer"), ("Q", "A"), ("Input", "Output"), ("Text", "Label"))
CASINGS: dict[str, Callable[[str], str]] = {"Title": str.title, "lower": str.lower, "UPPER": str.upper}
SEPARATORS = (": ", ":\n", " - ", "::: ", " ", ":\t", "= ")
JOINTS = ("\n", "\n\n", " ", " || ", "; ", " -- ")
ELEMENTS = ("descriptors", "casing", "separator", "joint")


@dataclass(frozen=True)
class Format:
    """How a question and the place of its answer are written: ``Question: ...\\nAnswer:``."""

    descriptors: tuple[str, str] = DESCRIPTORS[0]
    casing: str = "Title"
    separator: str = SEPARATORS[0]
    joint: str = JOINTS[0]

    def write(self, question: str) -> str:
        """The question in this format, up to where the answer begins (without a space at the end)."""
        first, second = (CASINGS[self.casing](word) for word in self.descriptors)
        return f"{first}{self.separator}{question}{self.joint}{second}{self.separator}".rstrip(" ")

    @property
    def name(self) -> str:
        """In short, with line breaks visible."""
        return repr(self.write("..."))[1:-1]


def all_formats() -> list[Format]:
    """Every format of the grammar."""
    return [Format(*parts) for parts in itertools.product(DESCRIPTORS, CASINGS, SEPARATORS, JOINTS)]


def sampled_formats(count: int, seed: int) -> list[Format]:
    """The usual format and ``count - 1`` others, drawn by the seed."""
    grammar = all_formats()
    if not 2 <= count <= len(grammar):
        raise UserError(f"{count} formats cannot be drawn from a grammar of {len(grammar)}: give 2 to {len(grammar)}.")
    others = [format_ for format_ in grammar if format_ != Format()]
    choice = np.random.default_rng(seed).choice(len(others), count - 1, replace=False)
    return [Format(), *(others[int(number)] for number in choice)]


def atomic_edits(start: Format) -> list[tuple[str, Format]]:
    """Every format that differs from ``start`` in one element, with the element's name."""
    choices: dict[str, Sequence[Any]] = {
        "descriptors": DESCRIPTORS, "casing": list(CASINGS), "separator": SEPARATORS, "joint": JOINTS,
    }  # fmt: skip
    return [
        (element, replace(start, **{element: value}))
        for element in ELEMENTS
        for value in choices[element]
        if value != getattr(start, element)
    ]


@dataclass(frozen=True)
class Searched:
    """What the bandit found: the arms, and per arm how many rows were tried and how many were right."""

    best: int
    worst: int
    tried: Float[np.ndarray, " arm"]
    right: Float[np.ndarray, " arm"]


def search_extremes(
    pull: Callable[[int, np.ndarray], np.ndarray], arms: int, rows: int, *, budget: int, batch: int, seed: int
) -> Searched:
    """Thompson sampling with Beta posteriors: half of the budget for the best arm, half for the worst (Sclar et al.
    2024).

    Args:
        pull: (arm, row numbers) -> scores in 0..1.
        arms: How many there are.
        rows: How many rows each arm can be tried on; a batch of an arm takes rows it has not seen while there are some.
        budget: Rows tried in all.
        batch: Rows per trial.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    orders = [random.permutation(rows) for _ in range(arms)]
    tried, right = np.zeros(arms), np.zeros(arms)
    spent = 0
    for sign in (1.0, -1.0):
        limit = spent + budget // 2
        while spent < limit and (tried < rows).any():
            drawn = sign * random.beta(1 + right, 1 + tried - right)
            drawn[tried >= rows] = -np.inf
            arm = int(drawn.argmax())
            start = int(tried[arm])
            pulled = orders[arm][start : start + batch]
            right[arm] += float(pull(arm, pulled).sum())
            tried[arm] += len(pulled)
            spent += len(pulled)
    mean = np.where(tried > 0, (right + 1) / (tried + 2), 0.5)
    return Searched(int(mean.argmax()), int(mean.argmin()), tried, right)
