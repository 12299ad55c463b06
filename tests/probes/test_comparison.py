"""Agreement of two maps: the card's numbers, identity, disjoint plants, chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probes
from probes.comparison import overlap
from probes.results import ProbeResult
from workbench.errors import UserError


def heads(scores: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"layer": np.arange(len(scores)) // 16, "head": np.arange(len(scores)) % 16, "score": scores})


def test_the_cards_numbers() -> None:
    """8 of 384 heads each: .17 shared by chance, Jaccard .0105; 25 of 32 shared: about 8e-27."""
    eight = overlap(2, 8, 8, 384)
    assert eight.expected == pytest.approx(0.1667, abs=1e-3) and eight.expected_jaccard == pytest.approx(
        0.0105, abs=1e-4
    )
    found = overlap(25, 32, 32, 384)
    assert found.expected == pytest.approx(2.67, abs=0.01) and 4e-27 < found.p < 2e-26


def test_recall_is_asymmetric() -> None:
    found = overlap(3, 4, 12, 100)
    assert (found.recall_of_first, found.recall_of_second) == (0.75, 0.25)
    assert found.jaccard == pytest.approx(3 / 13)


def test_a_map_against_itself_agrees_wholly(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=64)
    found = probes.compare(heads(scores), heads(scores).sample(frac=1, random_state=0))
    assert found.spearman == pytest.approx(1) and (found.table["score"] == 1).all() and found.n_cells == 64
    assert found.figure().data and "Spearman 1.000" in found.summary()
    again = ProbeResult.load(found.save(tmp_path / "c"))
    assert isinstance(again, probes.Comparison) and again.spearman == found.spearman


def test_a_map_without_ranks_is_said_to_have_none() -> None:
    found = probes.compare(heads(np.zeros(20)), heads(np.arange(20.0)))
    assert "no rank agreement (one map has the same score everywhere)" in found.summary()
    assert "nan" not in found.summary() and "nan" not in found.figure().layout.title.text


def test_disjoint_plants_share_nothing() -> None:
    first, second = np.zeros(100), np.zeros(100)
    first[:10], second[50:60] = 1, 1
    at_ten = probes.compare(heads(first), heads(second), ks=[10]).table.iloc[0]
    assert at_ten["shared"] == 0 and at_ten["jaccard"] == 0 and at_ten["p"] == 1


def test_random_maps_share_what_chance_says() -> None:
    generator = np.random.default_rng(0)
    shared, hits = [], 0
    for _ in range(40):
        one, other = (heads(generator.normal(size=384)) for _ in range(2))
        table = probes.compare(one, other, ks=[4, 32, 128]).table
        shared.append(table["shared"][1])
        hits += bool((table["q"] < 0.05).any())
    assert np.mean(shared) == pytest.approx(32**2 / 384, abs=0.6)
    assert hits <= 4


def test_own_cells_are_compared_with_their_own_numbers() -> None:
    one, other = heads(np.arange(20.0)), heads(np.arange(20.0))
    one["q"], other["q"] = 1.0, 1.0
    one.loc[:3, "q"], other.loc[2:11, "q"] = 0.01, 0.01
    own = probes.compare(one, other).own
    assert (own["of_first"], own["of_second"], own["shared"]) == (4, 10, 2)
    assert own["recall_of_first"] == 0.5 and own["recall_of_second"] == 0.2


def test_maps_that_cannot_be_compared_say_why() -> None:
    table = heads(np.arange(20.0))
    with pytest.raises(UserError, match="no cell column in common"):
        probes.compare(table, pd.DataFrame({"expert": [0, 1], "score": [1.0, 2.0]}))
    with pytest.raises(UserError, match="several rows for one cell"):
        probes.compare(table, pd.DataFrame({"layer": [0, 0, 1], "score": [1.0, 2.0, 3.0]}))
    with pytest.raises(UserError, match="at least 2"):
        probes.compare(table, table.assign(layer=100 + table["layer"]))
    with pytest.raises(UserError, match="out of range"):
        probes.compare(table, table, ks=[21])
    with pytest.raises(UserError, match="result or a DataFrame"):
        probes.compare(table, "heads")
