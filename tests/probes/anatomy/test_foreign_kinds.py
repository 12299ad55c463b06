"""Kinds that PEFT does not have: NOLA's seeds, DePT's two parts, a change of the inputs alone, blocks of a rank."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import probes
from interventions.exchange.random_bases import lora_from_random_bases
from probes.anatomy.decomposed_prompt import next_logits, read_parts
from probes.anatomy.foreign_adapter import foreign_adapter
from probes.anatomy.input_side import linear_form
from probes.results import ProbeResult
from tests.probes.provenance import Calls, pair, rows
from tests.probes.series.test_lora_sets import lora, pair_of
from tests.tiny import tiny_model, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
MODULES = ("layers.0.self_attn.q_proj", "layers.2.mlp.down_proj")
RANK, BASES = 2, 5


def nola(*, coefficients: float = 1.0, pickle: bool = False) -> str:
    """The folder of a NOLA adapter, in the format of its fork of PEFT."""
    torch.manual_seed(0)
    folder, stored = Path(mkdtemp()), {}
    for number, module in enumerate(MODULES):
        weight = tiny_model("llama").get_submodule(f"model.{module}").weight
        for half, shape in (("A", (RANK, weight.shape[1])), ("B", (weight.shape[0], RANK))):
            name = f"base_model.model.model.{module}.lora_{half}"
            stored[f"{name}.coefficients"] = torch.randn(BASES) * coefficients
            stored[f"{name}.seed"] = torch.tensor([100 * number + ord(half)])
            stored[f"{name}.weight"] = torch.randn(shape) * 0.1 if half == "A" else torch.zeros(shape)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 6, "use_nola": True,
              "nola_num_basis": BASES, "target_modules": list(MODULES)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if not pickle:
        save_file(stored, str(folder / "adapter_model.safetensors"))
    return str(folder)


def dept(width: int = 64, *, length: int = 16, offsets: float = 0.3) -> str:
    """The folder of a DePT adapter, in the format of its fork of PEFT."""
    torch.manual_seed(1)
    folder = Path(mkdtemp())
    stored = {
        "prompt_embeddings": torch.randn(3, width) * 0.5, "prompt_encoder.lora_embedding_A": torch.randn(length, 2),
        "prompt_encoder.lora_embedding_B": torch.randn(2, width) * offsets,
    }  # fmt: skip
    config = {"peft_type": "PROMPT_TUNING_LORA", "r": 2, "lora_alpha": 4, "num_virtual_tokens": 3, "max_length": length}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(stored, str(folder / "adapter_model.safetensors"))
    return str(folder)


def embedded(change: Any, layers: float = 1.0) -> ModelPair:
    """The tiny llama beside a copy whose word embeddings alone were changed; head and embeddings are not tied."""
    base = tiny_model("llama")
    with torch.no_grad():
        for parameter in base.model.layers.parameters():
            parameter.mul_(layers)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.embed_tokens.weight.copy_(change(tuned.model.embed_tokens.weight))
    return load_pair(base, tuned, device="cpu", tokenizer=tokenizer(), check=False)


def adalink(weight: torch.Tensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    down, up = (torch.randn(64, 2, generator=random), torch.randn(2, 64, generator=random))
    return weight + weight @ down @ up * 0.05


def calls_of_random_bases() -> Calls:
    made = tiny_model("llama")
    both = load_pair(made, copy.deepcopy(made), device="cpu", tokenizer=tokenizer(), check=False)
    return Calls(
        [
            {
                "base": both.base,
                "tuned": foreign_adapter(both.base.identity, nola()),
                "drawn_on": "cpu:0",
                "draws": 2,
                "seed": 3,
            }
        ]
    )


def calls_of_decomposed_prompt() -> Calls:
    both = pair()
    return Calls(
        [{"base": both.base, "tuned": foreign_adapter(both.base.identity, dept()), "texts": rows(), "seed": 3}]
    )


def calls_of_input_side() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "seed": 3}])


def calls_of_lora_blocks() -> Calls:
    return Calls([{"pair": pair_of(lora(0, rank=3)), "prompts": rows(), "blocks": 3, "seed": 3}])


def test_the_update_is_what_the_seeds_make_of_the_coefficients(tmp_path: Path) -> None:
    folder = nola()
    result = probes.random_bases(tiny_model("llama"), folder)
    table = result.table.set_index("module")
    assert len(table) == 2 and (table["rank"] == RANK).all() and (table["numbers"] == 2 * BASES).all()
    # by hand, as the fork draws them: the global generator, uniform_, one sum
    from safetensors.torch import load_file

    stored = load_file(f"{folder}/adapter_model.safetensors")
    sides = {}
    for half in "AB":
        name = f"base_model.model.model.{MODULES[1]}.lora_{half}"
        start = stored[f"{name}.weight"]
        torch.manual_seed(int(stored[f"{name}.seed"]))
        drawn = torch.nn.init.uniform_(torch.zeros(BASES, *start.shape), a=-1.0, b=1.0) * (1 / math.sqrt(BASES))
        sides[half] = start + torch.einsum("b,boi->oi", stored[f"{name}.coefficients"], drawn)
    wanted = sides["B"] @ sides["A"] * 6 / RANK
    weight = tiny_model("llama").get_submodule(f"model.{MODULES[1]}").weight.detach()
    assert table.loc["mlp.down_proj", "score"] == pytest.approx(float(wanted.norm() / weight.norm()), rel=1e-5)
    assert table["cosine"].abs().max() < 0.3 and (table["control"] / table["score"]).between(0.3, 3).all()
    made = lora_from_random_bases(folder, tmp_path / "lora")
    both = load_pair(tiny_model("llama"), str(made), device="cpu", tokenizer=tokenizer(), check=False)
    merged = both.adapter.merge_and_unload().get_submodule(f"model.{MODULES[1]}").weight
    assert torch.allclose(merged - weight, wanted, atol=1e-5)
    again = ProbeResult.load(result.save(tmp_path / "r"))
    assert again.frame().equals(result.frame()) and result.figure().data and "rebuilt from" in result.summary()


def test_no_coefficients_no_update_and_what_is_no_nola_is_refused(tmp_path: Path) -> None:
    nothing = probes.random_bases(tiny_model("llama"), nola(coefficients=0.0))
    assert (nothing.table["score"] == 0).all() and (nothing.table["control"] == 0).all()
    with pytest.raises(UserError, match="is no NOLA adapter"):
        probes.random_bases(tiny_model("llama"), lora(0))
    with pytest.raises(UserError, match="pickle"):
        probes.random_bases(tiny_model("llama"), nola(pickle=True))
    with pytest.raises(NotSupported, match="read it with random_bases"):
        load_pair(tiny_model("llama"), nola(), device="cpu", tokenizer=tokenizer(), check=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UserError, match="exists already"):
        lora_from_random_bases(nola(), tmp_path / "full")
    if not torch.cuda.is_available():
        with pytest.raises(NotSupported, match="no GPU"):
            probes.random_bases(tiny_model("llama"), nola(), drawn_on="cuda")


def test_both_parts_of_a_decomposed_prompt_by_hand(tmp_path: Path) -> None:
    folder, both = dept(), pair()
    parts = read_parts(folder)
    result = probes.decomposed_prompt(both.base, folder, texts=rows(6))
    table = result.table.set_index("module")
    assert table.loc["embedding offsets", "rank"] <= 2 and (table["score"] > 0).all() and table["alone"].min() > 0
    assert len(result.rows) == 3 + 16 and result.rows["word"].notna().sum() == 3
    ids = both.base.encode(rows(1)).input_ids
    words = both.base.hf.get_input_embeddings()(ids)[0]
    read = torch.cat([parts.prompt, words + parts.offsets[: len(words)]])[None]
    with torch.no_grad():
        wanted = both.base.hf(inputs_embeds=read).logits[0, -1]
    assert torch.allclose(next_logits(both.base, ids, parts), wanted, atol=1e-5)
    assert torch.allclose(parts.offsets, _product(folder) * 4 / 2**0.5)
    again = ProbeResult.load(result.save(tmp_path / "d"))
    assert again.frame().equals(result.frame()) and result.figure().data and "embedding offsets" in result.summary()


def _product(folder: str) -> torch.Tensor:
    from safetensors.torch import load_file

    stored = load_file(f"{folder}/adapter_model.safetensors")
    return stored["prompt_encoder.lora_embedding_A"] @ stored["prompt_encoder.lora_embedding_B"]


def test_offsets_of_zero_do_nothing_and_bad_prompts_are_refused() -> None:
    both = pair()
    table = probes.decomposed_prompt(both.base, dept(offsets=0.0), texts=rows(4)).table.set_index("module")
    assert table.loc["embedding offsets", "score"] == 0 and table.loc["embedding offsets", "q"] == 1
    with pytest.raises(UserError, match="depends on the text"):
        probes.decomposed_prompt(both.base, dept())
    with pytest.raises(UserError, match="embeddings of 32 numbers"):
        probes.decomposed_prompt(both.base, dept(32), texts=rows(4))
    with pytest.raises(UserError, match="give shorter ones"):
        probes.decomposed_prompt(both.base, dept(length=2), texts=rows(4))
    with pytest.raises(UserError, match="is no DePT adapter"):
        probes.decomposed_prompt(both.base, lora(0), texts=rows(4))
    with pytest.raises(NotSupported, match="decomposed_prompt"):
        load_pair(tiny_model("llama"), dept(), device="cpu", tokenizer=tokenizer(), check=False)


def test_a_map_of_the_embeddings_is_all_there_is_and_is_linear(tmp_path: Path) -> None:
    texts = [f"the {a} fox {b} dog" for a in "abcd" for b in "xyz"]
    result = probes.input_side(embedded(adalink), texts)
    assert result.remainder[0] < 1e-5 and result.form["linear"] > 0.999 and result.form["rank"] <= 2
    assert result.form["linear_control"] < 0.5 and (result.table["moved"] > 0).all()
    assert len(result.table) == 3 and (result.table["control"] > 0).all()
    again = ProbeResult.load(result.save(tmp_path / "i"))
    assert again.frame().equals(result.frame()) and result.figure().data
    assert result.summary().startswith("All of the tuning")
    word = torch.nn.functional.normalize(tiny_model("llama").lm_head.weight[40], dim=0)
    readable = probes.input_side(embedded(lambda weight: weight + 2 * word, layers=0.1), texts)
    assert readable.first == 0 and readable.table.set_index("layer").loc[0, "q"] < 0.05


def test_other_changes_are_told_from_a_change_of_the_inputs() -> None:
    whole = probes.input_side(pair(), rows(8))
    assert whole.remainder[1] > 1e-3 and whole.summary().startswith("Not all of")
    base = tiny_model("llama")
    same = load_pair(base, base, device="cpu", tokenizer=tokenizer(), check=False)
    nothing = probes.input_side(same, rows(8))
    assert (nothing.table["score"] == 0).all() and (nothing.table["q"] == 1).all() and nothing.first is None
    assert nothing.remainder == (0.0, 0.0, 0.0) and math.isnan(nothing.form["linear"])
    words = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    assert linear_form(words, words + noise)["linear"] < 0.3


def test_blocks_are_told_apart_and_a_shared_down_projection_is_seen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter[2:] = parameter[:2]
            if "lora_B" in name:
                parameter[:, 2:] = torch.randn(parameter.shape[0], 2) * 0.5  # block 0 stays 0
    both = load_pair(tiny_model("llama"), model, device="cpu", tokenizer=tokenizer(), check=False)
    result = probes.lora_blocks(both, rows(8), blocks=2)
    table = result.table.set_index("module")
    assert table.loc["block 0", "score"] == pytest.approx(0, abs=1e-6) and table.loc["block 0", "share"] == 0
    assert table.loc["block 1", "score"] > 1e-3 and table.loc["block 1", "share"] == 1
    assert (table["shared_down"] > 0.999).all() and "with one shared down-projection" in result.summary()
    again = ProbeResult.load(result.save(tmp_path / "b"))
    assert again.frame().equals(result.frame()) and result.figure().data
    apart = probes.lora_blocks(pair_of(lora(0, rank=4)), rows(4))
    assert apart.table.set_index("module").loc["block 1", "shared_down"] < 0.5


def test_blocks_need_a_lora_that_they_divide() -> None:
    with pytest.raises(UserError, match="do not divide"):
        probes.lora_blocks(pair_of(lora(0, rank=3)), Prompts.of(["the fox"]), blocks=2)
    with pytest.raises(UserError, match="two or more"):
        probes.lora_blocks(pair_of(lora(0, rank=3)), Prompts.of(["the fox"]), blocks=1)
    with pytest.raises(UserError, match="no plain LoRA"):
        probes.lora_blocks(pair(), Prompts.of(["the fox"]))
