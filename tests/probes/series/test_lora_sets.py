"""Several LoRAs: frozen A averages exactly, a chain's rank grows by its links, an adapter gives itself back."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import probes
from probes.results import ProbeResult
from probes.series.factor_averages import averaging_error
from probes.weights.sources import Factors
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TARGETS = ["q_proj", "down_proj"]


def lora(seed: int, *, down: Any = None, rank: int = 3, targets: list[str] = TARGETS) -> str:
    """The folder of a random LoRA of the tiny llama; ``down``: A of every module, made from its shape."""
    torch.manual_seed(seed)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=rank, target_modules=targets, init_lora_weights=False))
    if down is not None:
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.data.copy_(down(parameter.shape))
    folder = mkdtemp()
    model.save_pretrained(folder)
    return folder


def frozen(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def pair_of(folder: str) -> ModelPair:
    return load_pair(tiny_model("llama"), folder, device="cpu", tokenizer=tokenizer(), check=False)


def calls_of_factor_averages() -> Calls:
    both = pair_of(lora(0))
    return Calls([{"base": both.base, "tuned": both.tuned, "checkpoints": [lora(1)], "initial": lora(2)}])


def calls_of_lora_chain() -> Calls:
    both = pair_of(lora(0))
    return Calls([{"base": both.base, "tuned": both.tuned, "checkpoints": [lora(1)], "seed": 3}])


def calls_of_adapter_reconstruction() -> Calls:
    both = pair_of(lora(0))
    return Calls([{"base": both.base, "tuned": both.tuned, "trained": lora(1), "seed": 3}])


def test_a_frozen_a_averages_exactly_and_a_trained_one_does_not(tmp_path: Path) -> None:
    clients = [lora(seed, down=frozen) for seed in (0, 1, 2)]
    result = probes.factor_averages(tiny_model("llama"), clients[0], checkpoints=clients[1:], initial=clients[2])
    assert result.table["score"].max() < 1e-14 and (result.table["a_equal"] == 1).all()
    assert (result.table["a_initial"] == 1).all() and len(result.table) == 6
    plain = [lora(seed) for seed in (0, 1, 2)]
    apart = probes.factor_averages(tiny_model("llama"), plain[0], checkpoints=plain[1:])
    assert apart.table["score"].min() > 0.5 and (apart.table["a_equal"] == 0).all()
    assert apart.table["control"].max() < 1e-14 and apart.table["a_initial"].isna().all()
    again = ProbeResult.load(apart.save(tmp_path / "f"))
    assert again.frame().equals(apart.frame()) and apart.figure().data and "averaging A and B" in apart.summary()


def test_the_error_of_an_average_by_hand() -> None:
    one, other = Factors(torch.eye(2), torch.eye(2), 1.0), Factors(-torch.eye(2), -torch.eye(2), 1.0)
    assert averaging_error([one, other]) == pytest.approx(1.0)  # the means of the factors are 0, that of BA is I
    assert averaging_error([one, one]) == 0.0


def test_the_rank_of_a_chain_is_the_sum_of_its_links(tmp_path: Path) -> None:
    links = [lora(seed, rank=2) for seed in (0, 1, 2)]
    result = probes.lora_chain(tiny_model("llama"), links[-1], checkpoints=links[:-1])
    table = result.table
    assert table["score"].is_monotonic_increasing and table["score"].iloc[0] <= 2 < table["score"].iloc[-1] <= 6
    assert (table["score"] - table["control"]).abs().max() < 1  # random links are what this chain is made of
    assert table["new"].iloc[0] == 1 and table["new"].iloc[1:].min() > 0.8 and table["cosine"].abs().max() < 0.2
    folder = [links[0]]
    twice = probes.lora_chain(tiny_model("llama"), _copy(links[0]), checkpoints=folder).table
    assert twice["cosine"].iloc[1] == pytest.approx(1, abs=1e-4) and twice["new"].iloc[1] == pytest.approx(0, abs=1e-4)
    assert twice["total"].iloc[1] == pytest.approx(2 * twice["norm"].iloc[0], rel=1e-4)
    again = ProbeResult.load(result.save(tmp_path / "c"))
    assert again.frame().equals(result.frame()) and result.figure().data and "links" in result.summary()


def _copy(folder: str) -> str:
    from shutil import copytree

    target = mkdtemp() + "/copy"
    copytree(folder, target)
    return target


def test_an_adapter_gives_itself_back_and_another_one_nothing(tmp_path: Path) -> None:
    trained = lora(0)
    same = probes.adapter_reconstruction(tiny_model("llama"), _copy(trained), trained=trained)
    assert same.table["score"].max() < 1e-5 and same.table["cosine"].min() == pytest.approx(1, abs=1e-5)
    other = probes.adapter_reconstruction(tiny_model("llama"), lora(5), trained=trained)
    assert other.table["fitted"].min() > 0.9 and other.table["cosine"].abs().max() < 0.3
    assert same.table["control"].min() > 0.9
    again = ProbeResult.load(other.save(tmp_path / "r"))
    assert again.frame().equals(other.frame()) and other.figure().data and "relative error" in other.summary()


def test_a_checkpoint_that_lies_in_a_folder_called_tuned_is_a_member_of_its_own(tmp_path: Path) -> None:
    from shutil import copytree

    other = copytree(lora(1), tmp_path / "tuned")
    table = probes.lora_chain(tiny_model("llama"), lora(0), checkpoints=[str(other)]).table
    assert table["module"].tolist() == ["tuned", "tuned (the final model)"]
    assert probes.factor_averages(tiny_model("llama"), lora(0), checkpoints=[str(other)]).table["score"].min() > 0.3


def test_what_cannot_be_compared_is_said() -> None:
    from tests.tiny import tuned_copy

    with pytest.raises(UserError, match="no module in common"):
        probes.factor_averages(tiny_model("llama"), lora(0), checkpoints=[lora(1, targets=["v_proj"])])
    with pytest.raises(UserError, match=r"has rank 2 in .* and 4 in tuned, so their factors have no mean"):
        probes.factor_averages(tiny_model("llama"), lora(0, rank=4), checkpoints=[lora(1, rank=2)])
    with pytest.raises(UserError, match="no plain LoRA"):
        probes.lora_chain(tiny_model("llama"), tuned_copy(tiny_model("llama")), checkpoints=[lora(1)])
    with pytest.raises(UserError, match="name the trained adapter"):
        probes.adapter_reconstruction(tiny_model("llama"), lora(0))


def test_an_adapter_of_a_wider_model_is_no_member() -> None:
    from copy import deepcopy

    from transformers import LlamaForCausalLM

    config = deepcopy(tiny_model("llama").config)
    config.hidden_size, config.head_dim = 2 * config.hidden_size, 2 * config.hidden_size // config.num_attention_heads
    with pytest.raises(UserError, match="adapter of another model"):
        probes.series_profile(LlamaForCausalLM(config), lora(0), checkpoints=[lora(1)])
