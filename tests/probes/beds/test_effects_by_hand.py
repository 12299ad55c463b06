"""Levels of generalization and positions on two axes, where every answer was written into a table of weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import probes
from tests.probes.beds.lookup import EPS, NO, WIDTH, YES, moved, place_of, table_model, words
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

LEVELS = ("rows of training", "new rows of its tasks", "new tasks of its categories", "new categories")
KINDS = (("x", "p"), ("x", "p"), ("y", "p"), ("z", "q"))
"""Task and category of each level."""
RIGHT = ((0, 8), (2, 6), (2, 4), (3, 0))
"""Of 8 prompts of each level: how many base and tuned answer."""
TASKS = Prompts.of([
    {"prompt": f"go s{number}", "answer": "yes", "distractor": "no", "task": KINDS[number // 8][0],
     "category": KINDS[number // 8][1], "language": "en" if number % 8 < 4 else "de"}
    for number in range(32)
])  # fmt: skip
TAUGHT = Prompts.of([{**row.columns, "prompt": row.prompt, "answer": "yes", "language": "en"} for row in TASKS[:8]])


def pair_with(base: Any, tuned: Any) -> Any:
    return load_pair(base, tuned, tokenizer=words(), check=False)


def answering(side: int) -> Any:
    return table_model([1.0 if number % 8 < RIGHT[number // 8][side] else -1.0 for number in range(32)])


def test_each_level_changes_by_the_answers_that_were_written_there() -> None:
    found = probes.generalization_levels(
        pair_with(answering(0), answering(1)), TASKS[::-1], training=TAUGHT, language="language"
    )
    changes = [(after - before) / 8 for before, after in RIGHT]
    for level, change in zip(LEVELS, changes, strict=True):
        line = found.line(level)
        assert line["score"] == pytest.approx(change) and line["low"] <= change <= line["high"]
        assert line["control"] == pytest.approx((sum(changes) - change) / 3) and line["n"] == 8
    assert list(found.table["group"].unique()[:4]) == list(LEVELS)  # from near to far, however the rows came
    assert found.line(LEVELS[0])["q"] < 0.05 and found.line(LEVELS[3])["q"] >= 0.05
    assert found.line("language en (seen)")["score"] == pytest.approx((4 + 2 + 2 - 3) / 16)
    assert found.line("language de (unseen)")["score"] == pytest.approx((4 + 2) / 16)


def test_levels_of_a_base_against_itself_do_not_differ() -> None:
    found = probes.generalization_levels(pair_with(answering(0), answering(0)), TASKS, training=TAUGHT)
    changes = found.table[found.table["model"] == "tuned - base"]
    assert (changes["score"] == 0).all() and (changes["q"] >= 0.05).all()


SLANT = WIDTH - 1
"""The dimension that the slant is written into; the base's states are 0 there."""
STATEMENTS = Prompts.of([
    {"prompt": f"go s{number}", "answer": "yes", "distractor": "no", "group": f"g{number // 4}",
     "axis": ("economic", "social")[number // 2 % 2], "side": (1, -1)[number % 2]}
    for number in range(32)
])  # fmt: skip
AGREES, READS = 2.0, 5.0


def agreeing() -> Any:
    """Agrees with every statement by 2 nats, and reads the slant's dimension with a weight of 5."""
    model = table_model([AGREES] * 32)
    with torch.no_grad():
        model.lm_head.weight[YES, SLANT] += READS / WIDTH**0.5
    return model


def slanted(model: Any, size: float = 1.0) -> Any:
    """Adds its side to the states of economic statements only, along one dimension."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for number, row in enumerate(STATEMENTS):
            if row.columns["axis"] == "economic":
                tuned.model.embed_tokens.weight[place_of(number), SLANT] += size * row.columns["side"]
    return tuned


def position(size: float) -> float:
    """Of the economic axis, by hand: the state is the word's dimension and the slant's, the norm divides both."""
    norm = math.sqrt((1 + size**2) / WIDTH + EPS) * WIDTH**0.5
    agreed = [math.tanh((AGREES + READS * size * side) / norm / 2) for side in (1, -1)]
    return (agreed[0] - agreed[1]) / 2


def test_positions_scales_and_the_ablated_slant_are_those_of_the_weights() -> None:
    base = agreeing()
    found = probes.two_axes(pair_with(base, slanted(base)), STATEMENTS, scales=[-1.0, 0.5], layer=0)
    economic = {
        "base": 0.0, "tuned": position(1), "tuned - base": position(1),
        "base + -1 x update - base": position(-1), "base + 0.5 x update - base": position(0.5),
        "tuned, slant ablated - tuned": -position(1),
    }  # fmt: skip
    for model, score in economic.items():
        assert found.line("economic", model)["score"] == pytest.approx(score, abs=1e-4), model
        assert found.line("social", model)["score"] == pytest.approx(0, abs=1e-4), model
    assert position(1) > 0.5 and abs(found.line("economic")["control"]) < position(1) / 2
    assert abs(found.line("economic", "tuned, slant ablated - tuned")["control"]) < position(1) / 4
    both = [math.tanh((AGREES + READS * side) / math.sqrt(2) / 2) for side in (1, -1)]
    assert found.numbers["acquiescence of base"] == pytest.approx(math.tanh(AGREES / 2), abs=1e-4)
    assert found.numbers["acquiescence of tuned"] == pytest.approx(
        (math.tanh(AGREES / 2) + sum(both) / 2) / 2, abs=1e-4
    )


def test_a_tuning_that_agrees_more_with_everything_has_not_moved() -> None:
    base = agreeing()
    tuned = moved(base, dict.fromkeys(range(32), -2.0), NO)
    found = probes.two_axes(pair_with(base, tuned), STATEMENTS, layer=0)
    changes = found.table[found.table["model"] == "tuned - base"]
    assert np.allclose(changes["score"], 0, atol=1e-6) and (changes["q"] >= 0.05).all()
    assert found.numbers["acquiescence of tuned"] > found.numbers["acquiescence of base"] + 0.1


def test_a_base_against_itself_stands_where_it_stood() -> None:
    base = agreeing()
    found = probes.two_axes(pair_with(base, base), STATEMENTS, layer=0)
    compared = found.table[~found.table["model"].isin(("base", "tuned"))]
    assert np.allclose(compared["score"], 0, atol=1e-9) and (compared["q"] >= 0.05).all()
