"""Banks of fine-tunes: each task picks its own, the router finds it, LEGO of a permuted copy is the adapter."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch

import probes
from probes.results import ProbeResult
from tests.probes.grafting.test_graft import ANIMALS, task, train
from tests.probes.provenance import Calls, pair, rows
from tests.probes.series.test_lora_sets import _copy, lora, pair_of
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
FIRST = {"quick": ("fox", "dog"), "lazy": ("dog", "fox")}
"""The first word says whether the answers are swapped, so neither fine-tune can serve both."""


def labelled(n: int = 16) -> Prompts:
    return Prompts.of([{**row.as_dict(), "label": "ab"[place % 2]} for place, row in enumerate(rows(n))])


def folder(model: Any) -> str:
    place = mkdtemp()
    model.save_pretrained(place)
    return place


def calls_of_adapter_bank() -> Calls:
    options = {"checkpoints": [folder(tuned_copy(tiny_model("llama"), seed=5, size=0.1))], "shots": 4}
    return Calls([{"pair": pair(), "prompts": labelled(), **options, "batch_size": 3, "seed": 3}])


def calls_of_twin_merge() -> Calls:
    options = {
        "checkpoints": [folder(tuned_copy(tiny_model("llama"), seed=5, size=0.1))], "tasks": ["b", "a"], "rank": 3,
        "layer": 0, "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": labelled(), **options}])


@pytest.fixture(scope="module")
def bank() -> tuple[ModelPair, str, Prompts]:
    """Two fine-tunes, one per task, and prompts of both with their label."""
    torch.manual_seed(0)
    tuned = {}
    for first, answers in FIRST.items():
        model = tiny_model("llama")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers" in name)
        tuned[first] = train(model, task(first, answers, rows=40), 40, 3e-3)
    both = load_pair(tiny_model("llama"), tuned["lazy"], device="cpu", tokenizer=tokenizer(), check=False)
    mixed = [
        {**row.as_dict(), "label": first, "group": f"{first}{row.group}"}
        for first, answers in FIRST.items()
        for row in task(first, answers, rows=40)
    ]
    return both, folder(tuned["quick"]), Prompts.of(mixed)


def test_each_task_picks_the_fine_tune_made_for_it(bank: tuple[ModelPair, str, Prompts], tmp_path: Path) -> None:
    both, other, prompts = bank
    result = probes.adapter_bank(both, prompts, checkpoints=[other])
    table = result.table.set_index("module")
    assert table.loc["lazy", "member"] == "tuned" and table.loc["quick", "member"] == Path(other).name
    assert (table["regret"] == 0).all() and (table["rank"] == 1).all() and (table["score"] > table["control"]).all()
    assert len(result.shares) == 4 and abs(result.likeness["cosine"].iloc[0]) < 1
    again = ProbeResult.load(result.save(tmp_path / "b"))
    assert again.frame().equals(result.frame()) and result.figure().data and "lazy -> tuned" in result.summary()


def test_the_router_finds_the_task_and_full_rank_parts_give_it_back(
    bank: tuple[ModelPair, str, Prompts], tmp_path: Path
) -> None:
    both, other, prompts = bank
    result = probes.twin_merge(both, prompts, checkpoints=[other], tasks=["quick", "lazy"], rank=96)
    table = result.table.set_index("module")
    assert result.router_accuracy == 1.0 and table.loc["routed", "score"] == table.loc["oracle", "score"]
    assert table.loc["oracle", "score"] > max(result.alone.values()) and table.loc["routed", "q"] < 0.05
    assert table.loc["routed", "score"] > table.loc["routed", "control"]
    energy = result.energy.sort_values("rank")
    assert energy.groupby("task")["share"].last().min() == pytest.approx(1, abs=1e-5)
    assert energy.groupby("task")["share"].apply(lambda share: (np.diff(share) >= 0).all()).all()
    again = ProbeResult.load(result.save(tmp_path / "t"))
    assert (
        again.frame().equals(result.frame())
        and result.figure().data
        and "the router is right on 100%" in result.summary()
    )
    with pytest.raises(UserError, match="name the label of each member"):
        probes.twin_merge(both, prompts, checkpoints=[other], tasks=["quick"])


def test_lego_of_an_adapter_and_its_copy_is_the_adapter() -> None:
    trained = lora(0)
    both = pair_of(trained)
    result = probes.merge_test(both, rows(16), checkpoints=[_copy(trained)], rules=["lego", "uniform"], points=0)
    table = result.table.set_index("module")
    assert table.loc["lego", "loss"] == pytest.approx(table.loc["tuned", "loss"], abs=1e-4)
    assert table.loc["uniform", "loss"] == pytest.approx(table.loc["tuned", "loss"], abs=1e-4)
    with pytest.raises(UserError, match="no plain LoRA"):
        probes.merge_test(pair(), rows(16), checkpoints=[trained], rules=["lego"])


def test_tasks_need_labels(bank: tuple[ModelPair, str, Prompts]) -> None:
    both, other, _ = bank
    with pytest.raises(UserError, match="has no label"):
        probes.adapter_bank(both, task("quick", ANIMALS, rows=20), checkpoints=[other])
