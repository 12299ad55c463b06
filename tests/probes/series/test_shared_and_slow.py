"""A shared and a task LoRA that overlap by construction; an adapter, its slow average, and what they know together."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import probes
from probes.results import ProbeResult
from tests.probes.provenance import Calls, pair
from tests.probes.series.test_banks import bank, folder, labelled  # noqa: F401 (a fixture)
from tests.probes.series.test_lora_sets import lora, pair_of
from tests.tiny import tiny_model, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def written(spaces: tuple[int, int], seed: int) -> str:
    """A LoRA whose B writes into some of the coordinates alone."""
    torch.manual_seed(seed)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                kept = torch.zeros(len(parameter), 1)
                kept[spaces[0] : spaces[1]] = 1
                parameter.mul_(kept)
    place = mkdtemp()
    model.save_pretrained(place)
    return place


def calls_of_shared_part() -> Calls:
    both = pair_of(lora(0))
    options = {"shared": lora(1), "checkpoints": [lora(2)], "draws": 5, "seed": 3}
    return Calls([{"base": both.base, "tuned": both.tuned, **options}])


def calls_of_online_offline() -> Calls:
    options = {"offline": folder(tuned_copy(tiny_model("llama"), seed=5, size=0.1)), "draws": 2, "batch_size": 3}
    return Calls([{"pair": pair(), "prompts": labelled(), **options, "seed": 3}])


def test_a_task_that_writes_where_the_shared_part_writes_overlaps_wholly(tmp_path: Path) -> None:
    shared, inside, outside = written((0, 2), 1), written((0, 2), 2), written((2, 4), 3)
    result = probes.shared_part(tiny_model("llama"), inside, shared=shared, draws=50)
    assert (result.table["score"] > 0.9999).all() and (result.table["q"] < 0.05).all()
    assert result.table["control"].mean() == pytest.approx(2 / 64, abs=0.02)
    apart = probes.shared_part(tiny_model("llama"), outside, shared=shared)
    assert apart.table["score"].max() < 1e-6 and (apart.table["q"] > 0.5).all()
    both = probes.shared_part(tiny_model("llama"), inside, shared=shared, checkpoints=[outside])
    assert both.table["score"].mean() == pytest.approx(0.5, abs=1e-4) and both.tasks["task"].nunique() == 2
    again = ProbeResult.load(result.save(tmp_path / "s"))
    assert again.frame().equals(result.frame()) and result.figure().data and "random spaces" in result.summary()
    with pytest.raises(UserError, match="shared="):
        probes.shared_part(tiny_model("llama"), inside)


def test_two_fine_tunes_together_and_an_adapter_with_itself(
    bank: tuple[ModelPair, str, Prompts],  # noqa: F811
    tmp_path: Path,
) -> None:
    both, other, prompts = bank
    result = probes.online_offline(both, prompts, offline=other)
    table = result.table.set_index("module")
    assert table.loc["lazy", "online"] > table.loc["quick", "online"]
    assert table.loc["quick", "offline"] > table.loc["lazy", "offline"] and set(table.index) == {"quick", "lazy", "all"}
    assert result.modules["gap"].max() > 0 and table.loc["all", "disagree"] > 0
    again = ProbeResult.load(result.save(tmp_path / "o"))
    assert again.frame().equals(result.frame()) and result.figure().data and "Ensemble" in result.summary()
    same = probes.online_offline(both, prompts, offline=folder(both.tuned.hf))
    lines = same.table.set_index("module")
    assert np.allclose(lines["score"], lines["online"]) and (lines["q"] == 1).all() and (same.modules["gap"] == 0).all()
    with pytest.raises(UserError, match="offline="):
        probes.online_offline(both, prompts)


def test_the_ensemble_takes_the_larger_probability_of_the_two() -> None:
    from probes.series.online_offline import _Said

    one = _Said([np.array([0.9, 0.1]), np.array([0.4, 0.6])], np.array([0, 0]))
    two = _Said([np.array([0.2, 0.8]), np.array([0.7, 0.3])], np.array([0, 0]))
    hits: Any = one.right(two)
    assert hits.tolist() == [1.0, 1.0] and one.right().tolist() == [1.0, 0.0] and two.right().tolist() == [0.0, 1.0]
