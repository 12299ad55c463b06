"""What an update reads of its inputs: a LoRA started in their leading directions, and one at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import probes
from probes.anatomy.input_spans import share_inside
from probes.results import ProbeResult
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.collection import Prompts

TEXTS = Prompts.of([f"the {word} fox {other}" for word in ("quick", "brown", "lazy") for other in ("jumps", "over a")])


def calls_of_input_spans() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "draws": 3, "batch_size": 2, "seed": 3}])


def with_lora(family: str, targets: list[str], ranks: dict[str, int], fill: Any = None) -> ModelPair:
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=targets, rank_pattern=ranks, init_lora_weights=False, fan_in_fan_out=family == "gpt2"
    )
    model = get_peft_model(tiny_model(family), config)
    if fill is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    parameter.copy_(fill(name, parameter))
    return load_pair(tiny_model(family), model, device="cpu", tokenizer=tokenizer(), check=False)


def leading(base: Any, texts: Prompts, path: str, rank: int) -> torch.Tensor:
    """The leading directions of a module's inputs, by hand."""
    inputs: list[torch.Tensor] = []
    handle = base.hf.get_submodule(path).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for text in texts:
            base.hf(input_ids=base.encode(Prompts.of([text])).input_ids)
    handle.remove()
    every = torch.cat([text.reshape(-1, text.shape[-1]) for text in inputs])
    return torch.linalg.svd(every, full_matrices=False)[2][:rank]


@pytest.mark.parametrize(("family", "target"), [("llama", "q_proj"), ("gpt2", "c_proj")])
def test_a_start_in_the_inputs_leading_directions_reads_the_most_there_is(family: str, target: str) -> None:
    plain = load_pair(tiny_model(family), tiny_model(family), device="cpu", tokenizer=tokenizer(), check=False).base

    def fill(name: str, parameter: torch.Tensor) -> torch.Tensor:
        path = name.removeprefix("base_model.model.").split(".lora_A")[0]
        return leading(plain, TEXTS, path, parameter.shape[0])

    table = probes.input_spans(with_lora(family, [target], {}, fill), TEXTS, draws=200).table
    assert (table["best"] - table["score"]).abs().max() < 0.05 and (table["rank"] == 2).all()
    assert (table["score"] > table["control"] + 0.2).all() and len(table) == (3 if family == "llama" else 6)
    assert (table["q"] < 0.05).all()


def test_ranks_are_read_from_the_numbers_and_random_spans_read_what_chance_does(tmp_path: Path) -> None:
    ranks = {"layers.0.self_attn.q_proj": 6, "layers.1.self_attn.q_proj": 5, "layers.2.self_attn.q_proj": 1}
    result = probes.input_spans(with_lora("llama", ["q_proj"], ranks), TEXTS, draws=20)
    table = result.table.set_index("layer")
    assert table["rank"].tolist() == [6, 5, 1]
    assert (table["score"] - table["control"]).abs().max() < 0.15 and (table["best"] >= table["score"]).all()
    assert (table["largest"] > table["smallest"]).all() and (table["rank90"] <= table["rank"]).all()
    again = ProbeResult.load(result.save(tmp_path / "i"))
    assert again.frame().equals(result.frame()) and result.figure().data and "ranks 1 to 6" in result.summary()


def test_a_random_span_that_suits_all_prompts_is_no_finding() -> None:
    result = probes.input_spans(with_lora("llama", ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj"], {}), rows())
    assert len(result.table) == 15 and (result.table["q"] > 0.05).all() and "at q < 0.05 in 0" in result.summary()


def test_shares_by_hand_and_nothing_where_nothing_moved() -> None:
    covariance = torch.diag(torch.tensor([3.0, 1.0, 0.0]))[None]
    assert share_inside(covariance, torch.eye(3)[:, :1]).tolist() == pytest.approx([0.75])
    same = load_pair(tiny_model("llama"), tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="No linear map"):
        probes.input_spans(same, TEXTS)
