"""Thresholds reach their sparsity, likeness is 1 for one model, planted layers are the ones that paths need."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
import probes
from probes.sparsity.neurons import jaccard
from probes.sparsity.row_paths import RowPaths
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair


def calls_of_sparsity_curve() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "rule": "wina", "sparsities": [0.3], "batch_size": 3, "seed": 3}])


def calls_of_layer_paths() -> Calls:
    given = {"budget": 0.6, "small_cost": 0.4, "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


@pytest.mark.parametrize("rule", ["cats", "wina", "magnitude"])
def test_thresholds_reach_their_sparsity(rule: str) -> None:
    both = pair()
    found = probes.sparsity_curve(both, rows(), rule=rule, sparsities=[0.5])  # type: ignore[arg-type]
    fired: list[torch.Tensor] = []
    hook = SiteHook(Site("mlp_post", 1), lambda value, _ctx: fired.append((value != 0).float().mean()))
    with iv.Recipe([found.intervention(0.5)]).applied(both.tuned), both.tuned.hooked([hook]):
        both.tuned.forward(both.tuned.encode(rows()))
    assert 0.4 < float(fired[0]) < 0.6
    assert found.figure().data and "At sparsity 0.5" in found.summary()
    with pytest.raises(UserError, match="was not calibrated"):
        found.intervention(0.7)


def test_likeness_by_hand_and_one_model_with_itself() -> None:
    a, b = torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])
    assert jaccard(a, b) == 0.5 and jaccard(~a & a, ~a & a) == 1.0
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer(), check=False)
    found = probes.sparsity_curve(same, rows(), sparsities=[0.5])
    assert (found.table["score"] == 1).all() and (found.table["control"] < 1).all()
    by_model = found.skill.pivot(index="sparsity", columns="model", values="score")
    assert (by_model["base"] == by_model["tuned"]).all()


def layer_pair() -> ModelPair:
    """Tuned in layer 1 alone."""
    base = tiny_model("llama")
    tuned, moved = copy.deepcopy(base), tuned_copy(base, size=0.3)
    tuned.model.layers[1].load_state_dict(moved.model.layers[1].state_dict())
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def adapter_pair() -> ModelPair:
    torch.manual_seed(0)
    lora = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    return load_pair(tiny_model("llama"), lora, tokenizer=tokenizer(), check=False)


@pytest.mark.parametrize("make", [layer_pair, adapter_pair])
def test_rows_run_on_paths_of_their_own(make: object) -> None:
    both, ids = make(), token_batch(3, 9, seed=3)  # type: ignore[operator]
    paths = torch.tensor([[2, 2, 2], [1, 1, 1], [2, 0, 2]])
    with RowPaths(both, paths).applied(both.tuned):
        found = both.tuned.forward(ids)
    torch.testing.assert_close(found[0], both.tuned.forward(ids)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], both.base.forward(ids)[1], atol=1e-5, rtol=1e-5)
    with iv.Recipe([iv.LayerSkip([1])]).applied(both.tuned):
        torch.testing.assert_close(found[2], both.tuned.forward(ids)[2], atol=1e-5, rtol=1e-5)
    assert both.tuned.n_hooks == 0


def test_the_oracle_is_never_beaten_and_needs_the_planted_layer() -> None:
    both = layer_pair()
    found = probes.layer_paths(both, rows(12), budget=0.9, small_cost=0.5)
    lines = found.table.set_index("router")
    assert found.search == "exhaustive" and (lines["regret"].drop("all tuned") >= -1e-6).all()
    assert (lines.loc[["oracle", "fixed", "trained"], "cost"] <= 0.9 * 3 + 1e-6).all()
    tuned_use = found.use["tuned"].to_numpy()
    assert tuned_use[[0, 2]].max() == 0, "where base and tuned layer are one, the cheaper is taken"
    assert np.allclose(found.use[["skip", "base", "tuned"]].sum(axis=1), 1) and found.figure().data


def test_a_base_with_itself_needs_no_tuned_layer() -> None:
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer(), check=False)
    assert (probes.layer_paths(same, rows(), budget=1.0).use["tuned"] == 0).all()
    with pytest.raises(UserError, match="budget is a share"):
        probes.layer_paths(same, rows(), budget=0.0)
