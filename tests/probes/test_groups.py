"""Prompts of one group depend on each other: copies of a prompt are no further evidence, and say so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import probes
from probes.resampling import row_clusters, units_of
from probes.shift import mean_shift
from tests.probes.test_token_ranks import model_of
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

COPIES = 5
TEXTS = ["the quick brown", "a lazy dog", "jumps over the", "fox and dog", "brown", "quick dog", "over the", "dog dog"]


def rows(copies: int, grouped: bool) -> Prompts:
    """Every text ``copies`` times, the copies of one in one group, or without any."""
    return Prompts.of([
        {"prompt": text, **({"group": text} if grouped else {})} for text in TEXTS for _ in range(copies)
    ])  # fmt: skip


def claimed(copies: int) -> Prompts:
    """The same, each copy in a group of its own: what copies must not be taken for."""
    return Prompts.of([{"prompt": text, "group": f"{text} {copy}"} for text in TEXTS for copy in range(copies)])


def tiny_pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)


def delta(prompts: Prompts) -> tuple[Any, pd.DataFrame]:
    found = probes.activation_delta(record(tiny_pair(), prompts, ["resid_post", "z"], positions="all"), components=0)
    return found, found.table.sort_values(["site", "layer", "head"])


def delta_by_position(prompts: Prompts) -> tuple[Any, pd.DataFrame]:
    recorded = record(tiny_pair(), prompts, ["resid_post"], positions="all")
    found = probes.activation_delta(recorded, components=0, by_position=True)
    return found, found.table.sort_values(["layer", "position"])


def lens(prompts: Prompts) -> tuple[Any, pd.DataFrame]:
    found = probes.logit_lens(tiny_pair(), prompts, shown=1)
    return found, found.table


def both() -> Any:
    base, tuned = model_of(), model_of(bump=2.0)
    return SimpleNamespace(base=base, tuned=tuned, models={"base": base, "tuned": tuned})


def shares(prompts: Prompts) -> tuple[Any, pd.DataFrame]:
    found = probes.token_shift(both(), prompts, max_new_tokens=4)
    return found, found.shares.rename(columns={"share": "score"})


def shares_by_position(prompts: Prompts) -> tuple[Any, pd.DataFrame]:
    found = probes.token_shift(both(), prompts, max_new_tokens=4)
    return found, found.table


@pytest.mark.parametrize("probe", [delta, delta_by_position, lens, shares, shares_by_position])
def test_copies_in_one_group_give_the_interval_of_the_originals(probe: Any) -> None:
    once, originals = probe(rows(1, grouped=False))
    grouped, copied = probe(rows(COPIES, grouped=True))
    alone, ungrouped = probe(rows(COPIES, grouped=False))
    wrong, narrow = probe(claimed(COPIES))
    edges = ["score", "low", "high"]
    pd.testing.assert_frame_equal(ungrouped, copied, check_exact=True)
    assert copied[edges].to_numpy() == pytest.approx(originals[edges].to_numpy(), rel=1e-3, abs=1e-4)
    assert (copied["n"] == COPIES * originals["n"]).all() if "n" in copied else True
    widths = [(table["high"] - table["low"]).mean() for table in (copied, narrow)]
    assert widths[1] < 0.75 * widths[0], "copies counted as prompts make the interval falsely narrow"
    assert once.resampled == "8 prompts" and wrong.resampled == "40 prompts"
    assert (
        grouped.resampled == alone.resampled == "8 groups of prompts (40 in all)"
        and grouped.resampled in grouped.summary()
    )


def test_copies_are_never_on_both_sides_of_concept_directions() -> None:
    """Directions of copies are those of the originals, to the scores and intervals on the groups held out."""
    tables, drawn = [], []
    for prompts in (rows(1, grouped=False), rows(COPIES, grouped=True)):
        recorded = record(tiny_pair(), prompts, ["resid_post"], positions="last", layers=[1])
        found = probes.concept_directions(recorded, "pca", k=2)
        tables.append(found.table[["score", "low", "high", "control", "shift", "q"]].to_numpy())
        drawn.append(found.resampled)
        assert found.resampled in found.summary()
    assert tables[1] == pytest.approx(tables[0], rel=1e-3, abs=1e-4, nan_ok=True)
    assert drawn == ["2 prompts", "2 groups of prompts (10 in all)"]
    two = Prompts.of([{"prompt": text, "group": str(place % 2)} for place, text in enumerate(TEXTS)])
    with pytest.raises(UserError, match="at least three"):
        probes.concept_directions(record(tiny_pair(), two, ["resid_post"], positions="last", layers=[1]))


def test_copies_in_one_group_are_no_further_evidence_of_what_a_head_writes() -> None:
    tables = [
        probes.head_words(tiny_pair(), prompts, 1, 2).table
        for prompts in (rows(6, grouped=True), rows(6, grouped=False), claimed(6))
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert tables[0]["token_id"].tolist() == tables[2]["token_id"].tolist()
    assert (tables[0]["q"] >= 2 / 2 ** len(TEXTS)).all() and (tables[2]["q"] < 2 / 2 ** len(TEXTS)).any()


@pytest.mark.parametrize("probe", [delta, delta_by_position, shares_by_position])
def test_copies_in_one_group_are_no_further_evidence(probe: Any) -> None:
    """The tests, too. (The lens draws its control anew for every token, so its copies do differ.)"""
    assert probe(rows(COPIES, grouped=True))[1]["q"].to_numpy() == pytest.approx(
        probe(rows(1, grouped=False))[1]["q"].to_numpy(), abs=1e-6
    )


@pytest.mark.parametrize("probe", [delta, delta_by_position, lens, shares, shares_by_position])
def test_groups_of_one_prompt_change_nothing(probe: Any) -> None:
    plain, singles = probe(rows(1, grouped=False)), probe(rows(1, grouped=True))
    pd.testing.assert_frame_equal(plain[1], singles[1], check_exact=True)


def test_a_shift_by_hand() -> None:
    """Two groups, of two prompts and of one: only the pairs of prompts across groups count."""
    a, b, c = (torch.tensor(one, dtype=torch.float64) for one in ([1.0, 2.0], [3.0, -1.0], [2.0, 5.0]))
    found = mean_shift(torch.stack([a, b, c])[:, None], clusters=np.array([4, 4, 9]))
    assert found.size[0] == pytest.approx(float(((a + b) @ c / 2).sqrt()))
    assert found.p[0] == 0.5, "one of the two sign patterns of two groups that are apart"


def test_the_groups_of_a_recording() -> None:
    index = pd.DataFrame({"prompt": [0, 0, 1, 2, 2, 3, 4], "group": ["b", "b", None, "a", "a", "b", None]})
    assert row_clusters(index).tolist() == [0, 0, 1, 2, 2, 0, 3]
    assert row_clusters(index.drop(columns="group")).tolist() == [0, 0, 1, 2, 2, 3, 4]
    made = record(tiny_pair(), rows(2, grouped=True), ["resid_post"], positions="last", layers=[0])
    assert row_clusters(made.index).tolist() == rows(2, grouped=True).clusters.tolist()
    assert units_of(np.array([0, 1, 1])) == "2 groups of prompts (3 in all)" and units_of(np.arange(3)) == "3 prompts"


def test_a_stored_recording_keeps_its_groups(tmp_path: Path) -> None:
    made = record(tiny_pair(), rows(2, grouped=True), ["resid_post"], store=tmp_path / "acts")
    kept = probes.activation_delta(Recording.load(made.folder or tmp_path), components=0)
    assert kept.resampled == "8 groups of prompts (16 in all)"
    back = probes.ActivationDelta.load(kept.save(tmp_path / "delta"))
    assert back.resampled == kept.resampled


def test_one_group_alone_is_nothing_to_judge_by() -> None:
    one = Prompts.of([{"prompt": text, "group": "same"} for text in TEXTS])
    with pytest.raises(UserError, match="8 prompts are of one group"):
        delta(one)
    table = lens(one)[1]
    assert table["low"].isna().all() and (table["q"] == 1).all()
