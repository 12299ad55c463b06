"""One label, one key and one order for every cell of every result."""

from __future__ import annotations

import doctest
import random

import numpy as np
import pandas as pd
import pytest

from workbench import cells
from workbench.cells import Cell, label
from workbench.errors import UserError

LABELS = {
    "L3H5": {"layer": 3, "head": 5},
    "L3E2": {"layer": 3.0, "expert": 2, "head": None},
    "L3E2 mlp.gate": {"layer": 3, "expert": 2, "module": "mlp.gate"},
    "L1 mlp.gate": {"layer": 1, "module": "mlp.gate"},
    "L1 mlp_out": {"layer": np.int64(1), "site": "mlp_out", "head": pd.NA, "score": 3.0},
    "L0H1 position 3": {"layer": 0, "head": 1, "position": 3.0},
    "L0 resid_pre position -1": {"layer": 0, "site": "resid_pre", "position": -1},
    "L1H0 positional tuned": {"layer": 1, "head": 0, "desideratum": "positional", "model": "tuned"},
    "L0E3 decode": {"layer": 0, "expert": 3, "phase": "decode"},
    "L0H1 last": {"layer": 0, "head": 1, "position": "last"},
    "direction 2": {"direction": 2.0},
    "first 4": {"count": 4.0},
    "all": {"score": 0.1},
}


@pytest.mark.parametrize(("written", "row"), LABELS.items())
def test_a_label_says_the_whole_cell(written: str, row: dict[str, object]) -> None:
    assert label(row) == written and Cell.of(row) == Cell.of({**row, "score": 7})


@pytest.mark.parametrize("written", ["L3", "L3H5", "L12E2", "L1 mlp.gate", "L1 mlp_out", "L3H5 position -1", "first 4"])
def test_a_label_is_read_back(written: str) -> None:
    assert Cell.parse(written).label == written


@pytest.mark.parametrize("wrong", ["", "H5", "layer 3", "L", "L3H", "L-1", "L03", "L0H01", "L٣"])
def test_what_is_no_label_is_told(wrong: str) -> None:
    with pytest.raises(UserError, match=r"is no cell: write L3 \(layer\)"):
        Cell.parse(wrong)


def test_cells_sort_by_place_and_numbers_not_by_text() -> None:
    names = ["L1", "L1H2", "L1H12", "L2E0", "L10H0", "L10H1 position 2", "L10H1 position 11"]
    mixed = [Cell.parse(name) for name in names] + [Cell(layer=10, position="last"), Cell(count=2), Cell(count=10)]
    shuffled = random.Random(0).sample(mixed, len(mixed))
    by_number = [one.label for one in sorted(shuffled)]
    assert by_number.index("L1H2") < by_number.index("L1H12") < by_number.index("L2E0") < by_number.index("L10H0")
    assert by_number[-2:] == ["first 2", "first 10"] and sorted(shuffled) == sorted(mixed)
    assert len({one.key for one in mixed}) == len(mixed) == len({*mixed})


def test_the_examples_in_the_docstring_are_true() -> None:
    assert doctest.testmod(cells).attempted >= 3 and doctest.testmod(cells).failed == 0
