"""mask_overlap: the numbers by hand, what it says it compared, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import probes
from probes.results import ProbeResult, Provenance
from workbench.errors import UserError


def graft(mask: dict[str, torch.Tensor], method: str = "movement", prompts: str = "aa") -> Any:
    """A graft of a model with 100 eligible weights."""
    made = Provenance(
        probe="graft", models={"base": {"name": "b", "hash": "11"}, "tuned": {"name": "t", "hash": prompts}},
        prompts=prompts, n_prompts=9, seed=4, settings={"method": method, "level": "entries"},
    )  # fmt: skip
    return probes.GraftResult(
        table=pd.DataFrame({"layer": [0], "module": ["m"], "score": [0.1]}), control="random", provenance=made,
        mask=mask, curve=pd.DataFrame(), models=pd.DataFrame(), method=method, level="entries", entries=0, eligible=100,
        dropped=0, history=[],
    )  # fmt: skip


@pytest.fixture
def found() -> Any:
    first = graft({"w": torch.arange(10), "v": torch.tensor([3])})
    second = graft({"w": torch.arange(20) < 4, "u": torch.tensor([3])}, "optimised", "bb")
    return probes.mask_overlap(first, second)


def test_the_numbers_are_those_of_the_two_sets(found: Any) -> None:
    assert (found.shared, found.of_first, found.of_second, found.total) == (4, 11, 5, 100)
    assert found.expected == pytest.approx(0.55) and found.jaccard == pytest.approx(4 / 12)
    assert (found.recall_of_first, found.recall_of_second) == (4 / 11, 4 / 5) and found.low <= 0.55 <= found.high < 4
    (row,) = found.frame().to_dict("records")
    assert (row["score"], row["control"], row["q"]) == (4, found.expected, found.p) and found.p < 0.01
    assert row["low"] == found.low and row["high"] == found.high and row["of_second"] == 5
    assert found.line()["jaccard"] == found.jaccard and found.figure()["data"][0]["x"] == (4,)
    assert found.summary().startswith("4 weights are in both regions (36.4% of the first, 80.0% of the second)")


def test_null_grafts_stand_in_for_chance_and_the_paper_rule_says_that_it_needs_them(found: Any) -> None:
    assert "give null grafts" in found.summary()
    first = graft({"w": torch.arange(10)}, "optimised")
    second = graft({"w": torch.arange(8, 18)}, "optimised")
    null = [graft({"w": torch.arange(start, start + 20)}, "optimised") for start in (6, 8, 10)]  # share 4, 2, 0
    against = probes.mask_overlap(first, second, null=null)
    assert against.shared == 2 and against.expected == pytest.approx(1.0) and against.p == 0.5
    assert "3 null grafts" in against.control and "give null grafts" not in against.summary()
    adaptive = probes.mask_overlap(graft({"w": torch.arange(4)}, "adaptive"), graft({"w": torch.arange(4)}, "adaptive"))
    assert "give null" not in adaptive.summary()


def test_it_says_which_grafts_it_compared(found: Any) -> None:
    made = found.provenance
    assert made.models["first tuned"] == {"name": "t", "hash": "aa"} and made.models["second tuned"]["hash"] == "bb"
    assert {side: made.settings[side]["prompts"] for side in ("first", "second")} == {"first": "aa", "second": "bb"}
    assert made.settings["second"]["settings"] == {"method": "optimised", "level": "entries"}
    assert made.settings["first"]["probe"] == "graft" and made.settings["first"]["seed"] == 4


def test_a_mask_is_known_by_its_entries_in_whichever_form_it_is_kept() -> None:
    sparse, dense = graft({"w": torch.tensor([0, 2])}), graft({"w": torch.tensor([True, False, True])})
    masks = probes.mask_overlap(sparse, dense).provenance.settings["masks"]
    assert masks["first"] == masks["second"]
    for other in ({"w": torch.tensor([0, 1])}, {"v": torch.tensor([0, 2])}):
        assert probes.mask_overlap(sparse, graft(other)).provenance.settings["masks"]["second"] != masks["first"]


def test_it_comes_back_from_its_file(found: Any, tmp_path: Path) -> None:
    again = ProbeResult.load(found.save(tmp_path / "overlap"))
    assert isinstance(again, probes.MaskOverlap) and again.provenance == found.provenance
    assert again.line() == found.line() and again.frame().equals(found.frame())


def test_ranks_are_no_entries() -> None:
    one = graft({"w": torch.arange(3)})
    with pytest.raises(UserError, match="choose no entries"):
        probes.mask_overlap(one, replace(one, level="ranks"))
