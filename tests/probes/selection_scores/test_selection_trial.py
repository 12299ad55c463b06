"""Selections of weights: each score by hand, exact sizes, and a planted region that only the right ones carry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import probes
from interventions.weightspace.selection_scores import SCORES, Evidence, half_of_tensors, top_mask
from probes.results import ProbeResult
from probes.selection_scores.evidence import gather
from tests.probes.grafting.test_graft import ANIMALS, full_pair, task
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts


@pytest.fixture(scope="module")
def data() -> Prompts:
    return task("quick", ANIMALS)


@pytest.fixture(scope="module")
def pair(data: Prompts) -> ModelPair:
    return full_pair(data)


def test_scores_by_hand() -> None:
    base, tuned = torch.tensor([[1.0, -2.0], [0.5, 4.0]]), torch.tensor([[1.5, -2.0], [0.5, 3.0]])
    slope = torch.tensor([[-1.0, 3.0], [0.0, 0.5]])
    seen = Evidence("w", base, tuned, slope, slope**2, torch.tensor([1.0, 0.0]))
    assert SCORES["first_order"](seen).tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert SCORES["change"](seen).tolist() == [[0.5, 0.0], [0.0, 1.0]]
    assert int(SCORES["small_weights"](seen).argmax()) == 2 and int(SCORES["large_weights"](seen).argmax()) == 3
    # ranks of |g|: 2/3 1 0 1/3, of |W0|: 1/3 2/3 0 1
    assert int(SCORES["general_only"](seen).argmax()) == 3 and int(SCORES["both"](seen).argmax()) == 1
    channels = SCORES["salient_channels"](seen)
    assert channels[0].tolist() == [1.0, 1.0] and channels[1].tolist() == [0.5, 0.5]  # only the first input is used
    assert torch.equal(SCORES["sensitivity"](seen), slope**2)


def test_masks_have_exactly_the_size_that_was_wanted() -> None:
    assert top_mask(torch.zeros(7, 11), 0.1).sum() == 8 and top_mask(torch.arange(4.0), 0.01).tolist() == [
        False
    ] * 3 + [True]
    names = [f"{layer}.{module}" for layer in "01" for module in "qkvo"]
    chosen = half_of_tensors(names, [name[0] for name in names], 0)
    assert sum(name[0] == "0" for name in chosen) == 2 and len(chosen) == 4


def test_gradients_are_those_of_autograd_and_nothing_is_left_behind(pair: ModelPair, data: Prompts) -> None:
    from probes.grafting.blend import Blender
    from probes.grafting.cutting import pair_region
    from probes.grafting.search import first_order
    from probes.series.answers import Answers

    whole = Answers.of(pair.base, data, 32).task()
    region = pair_region(pair, "entries")
    flags = [parameter.requires_grad for parameter in pair.base.hf.parameters()]
    found = gather(pair.base, region, whole)
    by_graft = first_order(Blender(pair.base.hf, region), whole)
    for name in region.parts:
        assert torch.allclose(SCORES["first_order"](found.of(name)), by_graft.flat[name], atol=1e-5)
    assert [parameter.requires_grad for parameter in pair.base.hf.parameters()] == flags
    assert all(parameter.grad is None and not module._forward_pre_hooks for module in pair.base.hf.modules()
               for parameter in module.parameters(recurse=False))  # fmt: skip


def test_what_moved_carries_more_than_random_and_predictions_are_told_apart(
    pair: ModelPair, data: Prompts, tmp_path: Path
) -> None:
    result = probes.selection_trial(
        pair, data, scores=["change", "first_order", "small_weights", "half_reset"], share=0.3,
        retain=task("lazy", ANIMALS, seed=5), draws=3,
    )  # fmt: skip
    table = result.table.set_index("module")
    assert result.tuned > result.base + 0.2
    assert table.loc["change", "score"] >= table.loc["change", "control"]
    assert table.loc["change", "hit_rate"] > 0.3 and table.loc["change", "iou"] == 1.0
    assert table.loc["small_weights", "iou"] == pytest.approx(table.loc["small_weights", "iou_chance"], abs=0.1)
    assert table.loc["half_reset", "share"] == pytest.approx(0.5, abs=0.2) and table["kept"].notna().all()
    assert result.intervention(pair, "change").size == table.loc["change", "entries"]
    again = ProbeResult.load(result.save(tmp_path / "s"))
    assert torch.equal(
        again.masks["change/" + next(iter(result.mask("change")))], next(iter(result.mask("change").values()))
    )
    assert result.figure().data and "carries most" in result.summary()


def test_unknown_names_and_equal_models_are_refused(pair: ModelPair, data: Prompts) -> None:
    with pytest.raises(UserError, match=r"Unknown score 'fischer'. Did you mean 'fisher'"):
        probes.selection_trial(pair, data, scores=["fischer"])
    import dataclasses

    with pytest.raises(UserError, match="do not differ"):
        probes.selection_trial(dataclasses.replace(pair, tuned=pair.base), data)
