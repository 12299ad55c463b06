"""Ranks by module: uneven ranks, layers without modules, a rank that is not used, and KaSA beside its true base."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora.config import KasaConfig

import probes
from probes.results import ProbeResult
from tests.probes.provenance import Calls, pair
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def calls_of_rank_map() -> Calls:
    both = pair()
    return Calls([{"base": both.base, "tuned": both.tuned, "share": 0.5}])


def test_ranks_are_those_of_the_modules_and_not_of_the_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ranks = {"layers.0.self_attn.q_proj": 6, "layers.0.mlp.up_proj": 1}
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], rank_pattern=ranks, layers_to_transform=[0, 2],
        init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.2.self_attn.q_proj" in name and "lora_B" in name:
                parameter[:, 1:] = 0  # nominal 4, used 1
    model.save_pretrained(tmp_path / "a")
    result = probes.rank_map(tiny_model("llama"), str(tmp_path / "a"))
    table = result.table.set_index(["layer", "module"])
    assert table.loc[(0, "self_attn.q_proj"), "rank"] == 6 and table.loc[(0, "mlp.up_proj"), "rank"] == 1
    assert table.loc[(2, "self_attn.q_proj"), ["rank", "score", "control"]].tolist() == [4, 1, 4]
    assert (table.loc[1, "rank"] == 0).all() and table["share"].sum() == pytest.approx(1)
    assert result.layers.set_index("layer")["modules"].tolist() == [2, 0, 2]
    again = ProbeResult.load(result.save(tmp_path / "r"))
    assert again.frame().equals(result.frame()) and result.figure().data and "no module in layers 1" in result.summary()


def test_a_searched_layout_of_adapters_and_whole_layers_is_seen() -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight += torch.outer(
            torch.randn(96, generator=random), torch.randn(64, generator=random)
        )
        tuned.model.layers[2].self_attn.q_proj.weight += torch.randn(64, 64, generator=random)
    layout = probes.rank_map(base, tuned).table.set_index(["layer", "module"])["rank"]
    assert layout[(1, "mlp.up_proj")] == 1 and layout[(2, "self_attn.q_proj")] == 64 and layout.sum() == 65


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kasa_is_read_beside_its_true_base() -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], kasa_config=KasaConfig(), init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), config)
    both = load_pair(tiny_model("llama"), model.eval(), device="cpu", tokenizer=tokenizer(), check=False)
    table = probes.rank_map(both.base, both.tuned).table.set_index(["layer", "module"])
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    with torch.no_grad():
        inputs = torch.eye(64)[None]
        change = (layer(inputs) - tiny_model("llama").model.layers[1].self_attn.q_proj(inputs))[0].T
    assert table.loc[(1, "self_attn.q_proj"), "norm"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert (table["rank"] > 0).sum() == 3


def test_base_against_itself_has_no_rank() -> None:
    with pytest.raises(UserError, match="no module was adapted"):
        probes.rank_map(tiny_model("llama"), tiny_model("llama"))
