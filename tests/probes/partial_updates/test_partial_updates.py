"""Parts of updates: blocks, scales and splits of a trained pair, with planted truth and base against itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import interventions as iv
import probes
from interventions.weightspace.task_vector import TaskVector
from probes.partial_updates.scale_sweep import _scaled
from probes.partial_updates.split import intruding
from probes.results import ProbeResult
from tests.probes.grafting.test_graft import ANIMALS, full_pair, task
from tests.probes.provenance import Calls, pair, rows
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def calls_of_scale_sweep() -> Calls:
    options = {
        "scales": [0.0, 0.5],
        "shape": "lines",
        "retain": rows(8, "a"),
        "margin": 0.2,
        "batch_size": 3,
        "seed": 3,
    }
    return Calls([{"pair": pair(), "prompts": rows(), **options}])


def calls_of_block_flips() -> Calls:
    options = {"cut": "layer", "retain": rows(8, "a"), "threshold": 0.01, "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **options}])


def calls_of_update_parts() -> Calls:
    options = {
        "parts": ["intruders", "no_intruders"], "rank": 2, "share": 0.1, "k": 4, "retain": rows(8, "a"),
        "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": rows(), **options}])


@pytest.fixture(scope="module")
def data() -> Prompts:
    return task("quick", ANIMALS, rows=40)


@pytest.fixture(scope="module")
def trained(data: Prompts) -> ModelPair:
    return full_pair(data)


@pytest.fixture(scope="module")
def one_block(trained: ModelPair) -> ModelPair:
    """The trained pair with all but layer 2's MLP set back."""
    with torch.no_grad():
        before = dict(trained.base.hf.named_parameters())
        for name, parameter in trained.tuned.hf.named_parameters():
            if "layers.2.mlp" not in name:
                parameter.copy_(before[name])
    return trained


def test_scales_end_at_the_base_and_at_the_tuned_model(trained: ModelPair, data: Prompts, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in trained.base.hf.state_dict().items()}
    result = probes.scale_sweep(trained, data, scales=[0.0, 0.5, 1.0], retain=task("lazy", ANIMALS, rows=16, seed=5))
    table = result.table.set_index("scale")
    assert table.loc[0.0, "score"] == table.loc[0.0, "control"] and table.loc[0.0, "q"] == 1.0
    assert table.loc[1.0, "score"] > table.loc[0.0, "score"] + 0.2 and table.loc[1.0, "q"] < 0.05
    assert table.loc[0.0, "verdict"] == "base" and set(table["verdict"]) <= {"base", "held", "lost", "emergent"}
    assert result.best_scale in (0.5, 1.0) and len(result.figure().data) == 3
    again = ProbeResult.load(result.save(tmp_path / "s"))
    assert again.frame().equals(result.frame()) and "t = " in result.summary()
    assert all(torch.equal(value, before[name]) for name, value in trained.base.hf.state_dict().items())


def test_layers_scaled_by_depth_are_layer_scale_and_end_at_the_tuned_model(trained: ModelPair, data: Prompts) -> None:
    result = probes.scale_sweep(trained, data, scales=[0.2, 1.0], shape="lines")
    table = result.table.set_index("scale")
    assert table.loc[1.0, "score"] == table.loc[1.0, "control"] and result.shape == "lines"
    flat = probes.scale_sweep(trained, data, scales=[1.0]).table["score"].iloc[0]
    assert table.loc[1.0, "score"] == pytest.approx(flat) and 0 <= result.held_out["score"] <= 1
    update = TaskVector.from_pair(trained)
    (vector, (reverse,)) = _scaled(update, trained.base, 0.2, "lines", 0)
    assert vector is not None
    scaled = iv.LayerScale.from_pair(trained, 0.2, 0.8)
    ids = trained.base.encode(data[:4]).input_ids
    with vector.graft(trained.base).entered(trained.base), torch.no_grad():
        summed = trained.base.hf(ids).logits
    with scaled.entered(trained.base), torch.no_grad():
        assert torch.allclose(trained.base.hf(ids).logits, summed, atol=1e-4)
    first, last = (next(name for name in update.changes if f"layers.{one}." in name) for one in (0, 2))
    assert torch.allclose(vector.changes[first], update.changes[first] * 0.2, atol=1e-7)
    assert torch.allclose(reverse.changes[last], update.changes[last] * 0.2, atol=1e-7)


def test_the_split_adds_up_and_the_whole_is_the_tuned_model(trained: ModelPair, data: Prompts, tmp_path: Path) -> None:
    parts = ["whole", "both", "inside", "outside"]
    result = probes.update_parts(trained, data, parts=parts, rank=4, share=0.05, k=16)
    table = result.table.set_index("module")
    sweep = probes.scale_sweep(trained, data, scales=[1.0])
    assert table.loc["whole", "score"] == pytest.approx(sweep.table["score"].iloc[0], abs=0.06)  # norms are left out
    assert table.loc["whole", "energy"] == pytest.approx(1) and table.loc["both", "energy"] < 1
    assert table.loc[["inside", "outside"], "energy"].sum() == pytest.approx(1, abs=1e-4)  # orthogonal halves
    assert table.loc["whole", "score"] > result.base + 0.2 > table.loc["whole", "control"]
    again = ProbeResult.load(result.save(tmp_path / "p"))
    assert again.frame().equals(result.frame()) and result.figure().data and "base" in result.summary()


def test_intruding_directions_are_those_the_base_lacks() -> None:
    weight = torch.zeros(32, 16)
    weight[:16] = torch.diag(torch.arange(16.0, 0, -1))
    inside = torch.outer(torch.eye(32)[1], torch.eye(16)[9])
    outside = torch.outer(torch.eye(32)[20], torch.eye(16)[3]) * 30
    # column 3 of the tuned weight is 13 e3 + 30 e20: that direction leads, and is like none of the base's
    odd = (13 * torch.eye(32)[3] + 30 * torch.eye(32)[20]) / (13**2 + 30**2) ** 0.5
    assert torch.allclose(intruding(inside + outside, weight, 8), torch.outer(odd, odd @ outside), atol=1e-3)
    assert float(intruding(inside, weight, 8).norm()) < 1e-4


def test_the_one_block_that_was_tuned_is_needed_and_does_alone(
    one_block: ModelPair, data: Prompts, tmp_path: Path
) -> None:
    result = probes.block_flips(one_block, data, cut="part")
    assert result.active == len(result.table) == 1 and result.total == 6
    row = result.table.iloc[0]
    assert (row["layer"], row["module"], row["size"]) == (2, "mlp", pytest.approx(1))
    assert row["alone"] == result.whole and row["score"] == pytest.approx(result.whole - row["base"])
    again = ProbeResult.load(result.save(tmp_path / "b"))
    assert again.frame().equals(result.frame()) and result.figure().data and "1 of 6 blocks" in result.summary()
    modules = probes.block_flips(one_block, data, cut="module")
    assert set(modules.table["module"]) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert modules.table["size"].sum() == pytest.approx(1)


def test_thinning_takes_out_so_many_and_scaling_nothing_is_nothing(data: Prompts) -> None:
    vector = TaskVector({"w": torch.ones(100, 100)})
    assert float(vector.thinned(0.3).changes["w"].mean()) == pytest.approx(0.7, abs=0.02)
    both = pair()
    same = dataclasses.replace(both, tuned=both.base)
    with pytest.raises(UserError, match="do not differ"):
        probes.block_flips(same, data)
    with pytest.raises(UserError, match="do not differ"):
        probes.update_parts(same, data)
    nothing = probes.scale_sweep(same, data, scales=[0.0, 1.0])
    assert nothing.table["score"].nunique() == 1 and (nothing.table["q"] == 1).all()
    with pytest.raises(UserError, match="Did you mean 'sparse'"):
        probes.update_parts(both, data, parts=["sparce"])
