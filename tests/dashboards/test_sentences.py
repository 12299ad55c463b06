"""The sentence above a map says what its numbers say."""

from __future__ import annotations

import pandas as pd

from dashboards.views.sentence import sentence_of


def test_the_strongest_cell_is_named_with_its_control_and_how_many_are_beyond() -> None:
    table = pd.DataFrame({
        "layer": [0, 1], "head": [2, 3], "score": [0.1, -0.5], "low": [0.0, -0.6], "high": [0.2, -0.4],
        "control": [0.2, 0.01], "q": [0.01, 0.001],
    })  # fmt: skip
    sentence = sentence_of(table)
    assert sentence == (
        "Strongest: L0H2, 0.1 [0, 0.2] beside 0.2 of its control; "
        "furthest below 0: L1H3, -0.5 [-0.6, -0.4] beside 0.01 of its control; "
        "1 of 2 cells are beyond their control (q < .05)."
    )
    assert sentence_of(table.iloc[:0]) == "" and sentence_of(table.drop(columns="score")) == ""
