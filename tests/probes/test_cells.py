"""Results beside themselves, whatever tells their cells apart; and what random other cells score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import probes
from probes.cells import columns_of, mean_of_others, random_others
from probes.headlines import beside, headlines
from tests.probes.provenance import pair, rows
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.recording.record_pair import record


@pytest.fixture(scope="module")
def two_sites() -> probes.ActivationDelta:
    sites = ["resid_post", "mlp_out", "z"]
    return probes.activation_delta(record(pair(), rows(12), sites, positions="last"))


def test_a_result_over_several_sites_stands_beside_itself(two_sites: probes.ActivationDelta) -> None:
    both = beside(two_sites, two_sites)
    assert len(both) == len(two_sites.table) and (both["difference"] == 0).all()
    same = probes.compare(two_sites, two_sites)
    assert same.n_cells == len(two_sites.table) and same.spearman == pytest.approx(1.0)
    assert (same.table["score"] == 1).all()


def test_the_strongest_cell_names_its_site(two_sites: probes.ActivationDelta) -> None:
    best = two_sites.frame().iloc[0]
    (strongest,) = headlines({"moved": two_sites})["strongest"]
    assert strongest.endswith(f" {best['site']}") and strongest.startswith(f"L{int(best['layer'])}")


def test_cells_of_two_sites_are_matched_by_site(two_sites: probes.ActivationDelta) -> None:
    table = two_sites.table
    halves = [table[table["site"].isin(sites)] for sites in (["resid_post", "mlp_out"], ["mlp_out", "z"])]
    shared = probes.compare(*halves)
    assert shared.n_cells == int((table["site"] == "mlp_out").sum()) and shared.spearman == pytest.approx(1.0)


def test_one_phase_can_be_held_against_another() -> None:
    frames = [pd.DataFrame({"layer": [0, 1], "expert": [0, 0], "phase": phase, "score": [0.1, 0.2]}) for phase in "ab"]
    assert columns_of(*frames) == ["layer", "expert"]
    assert columns_of(pd.concat(frames), frames[0]) == ["layer", "expert", "phase"]
    with pytest.raises(UserError, match="several rows for one cell"):
        probes.compare(*(frame.assign(phase=None) for frame in [pd.concat(frames)] * 2))


def test_other_cells_are_never_the_cell_itself() -> None:
    others = random_others(5, 200, seed=1)
    assert others is not None and (others != np.arange(5)[:, None]).all() and set(others.flatten()) == set(range(5))
    scores = np.array([0.0, 0.0, 10.0])
    control = mean_of_others(scores, 50, seed=0)
    assert control[2] == 0 and (control[:2] > 0).all() and (control[:2] < 10).all()
    assert np.isnan(mean_of_others(np.array([1.0]), 10, seed=0)).all() and len(mean_of_others(np.array([]), 3, 0)) == 0


def pair_of_one_head() -> ModelPair:
    config: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    base = tiny_model("llama", **config)
    return load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)


def test_a_model_of_one_head_has_no_other_head_and_no_traceback() -> None:
    with pytest.raises(UserError, match="at least two heads"):
        probes.head_selection(pair_of_one_head().base, rows())
    both = pair_of_one_head()
    found = probes.patching(both, rows(), "heads", normalise=False)
    assert found.table["control"].isna().all() and len(found.table) == 1 and found.together is None
