"""Trainings in selections of the weights: what learns, what a random selection learns, and nothing at a rate of 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import probes
from probes.results import ProbeResult
from tests.probes.grafting.test_graft import ANIMALS, task
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def calls_of_tuning_trial() -> Calls:
    options = {
        "rules": ["fisher"], "share": 0.2, "retain": rows(8, "a"), "refresh": 1, "epochs": 1, "learning_rate": 1e-2,
        "batch_size": 4, "draws": 1, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(16), **options}])


def test_more_weights_learn_more_and_the_model_is_as_before(tmp_path: Path) -> None:
    base = tiny_model("llama")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    both = load_pair(base, tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False)
    result = probes.tuning_trial(
        both, task("quick", ANIMALS, rows=80), rules=["gradient", "half"], share=0.1, epochs=6, learning_rate=3e-3,
        retain=task("lazy", ANIMALS, rows=16, seed=5), draws=1, batch_size=8,
    )  # fmt: skip
    table = result.table.set_index("module")
    assert table.loc["all", "score"] > result.untrained + 0.2 and table.loc["all", "control"] == result.untrained
    assert table.loc["all", ["share", "hit_rate"]].tolist() == pytest.approx([1, 1])
    assert table.loc["gradient", "hit_rate"] > table.loc["gradient", "share"]  # slopes say where training goes
    assert table.loc["gradient", "share"] == pytest.approx(0.1, abs=0.01) and table["retained"].notna().all()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    again = ProbeResult.load(result.save(tmp_path / "t"))
    assert again.frame().equals(result.frame()) and result.figure().data and "learns most" in result.summary()


def test_a_training_that_moves_nothing_shows_nothing() -> None:
    result = probes.tuning_trial(
        pair(), task("quick", ANIMALS, rows=40), rules=["random"], epochs=1, learning_rate=1e-12, draws=1
    )
    assert (result.table["score"] == result.untrained).all() and (result.table["q"] == 1).all()


def test_bad_input_is_told_before_any_training() -> None:
    with pytest.raises(UserError, match="Did you mean 'fisher'"):
        probes.tuning_trial(pair(), rows(), rules=["fischer"])
    with pytest.raises(UserError, match="too few"):
        probes.tuning_trial(pair(), rows(8))
