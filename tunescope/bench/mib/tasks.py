"""Prompts of two of MIB's tasks, made by templates of ours: indirect objects (Wang et al. 2023) and sums.

A contrast differs in the tokens that decide the answer, and in nothing else, so both have the same tokens elsewhere.
"""

from __future__ import annotations

import numpy as np

from workbench.errors import unknown_name
from workbench.prompts import Prompts

NAMES = (
    "Mary",
    "John",
    "Tom",
    "James",
    "Dan",
    "Martin",
    "Amy",
    "Anna",
    "Peter",
    "Paul",
    "Mark",
    "Sarah",
    "Laura",
    "Kate",
)
PLACES = ("store", "park", "school", "station", "garden", "office")
THINGS = ("drink", "book", "ring", "letter", "key", "bag")
FORMS = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "Then, {a} and {b} had a long talk at the {place}, and {s} gave a {thing} to",
    "After {a} and {b} left the {place}, {s} handed a {thing} to",
)


def task(name: str, rows: int, seed: int) -> Prompts:
    """``ioi`` or ``arithmetic``: rows with prompt, contrast, answer and distractor.

    Raises :class:`UserError` for another name.
    """
    if name not in TASKS:
        raise unknown_name("MIB task", name, list(TASKS))
    draw = np.random.default_rng(seed)
    return Prompts.of([TASKS[name](draw) for _ in range(rows)], chat=False)


def _indirect_object(draw: np.random.Generator) -> dict[str, str]:
    """The contrast lets the other of the two give (MIB's exchange of the second subject and the object)."""
    a, b = (str(name) for name in draw.choice(NAMES, 2, replace=False))
    giver, other = (a, b) if draw.random() < 0.5 else (b, a)
    words = {"a": a, "b": b, "place": str(draw.choice(PLACES)), "thing": str(draw.choice(THINGS))}
    form = str(draw.choice(FORMS))
    return {
        "prompt": form.format(s=giver, **words), "contrast": form.format(s=other, **words),
        "answer": f" {other}", "distractor": f" {giver}",
    }  # fmt: skip


def _sum(draw: np.random.Generator) -> dict[str, str]:
    """Sums below ten after three examples; the contrast has another second number."""
    shown = "".join(f"{x}+{y}={x + y}\n" for x, y in draw.integers(1, 5, (3, 2)))
    a, b = (int(integer) for integer in draw.integers(1, 5, 2))
    other = int(draw.choice([number for number in range(1, 6) if number != b]))
    return {
        "prompt": f"{shown}{a}+{b}=", "contrast": f"{shown}{a}+{other}=",
        "answer": str(a + b), "distractor": str(a + other),
    }  # fmt: skip


TASKS = {"ioi": _indirect_object, "arithmetic": _sum}
