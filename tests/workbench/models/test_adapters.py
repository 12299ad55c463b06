"""One copy of the weights: the adapter goes on, off and back exactly, and never on a base it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_model, token_batch
from tests.workbench.models.conftest import SaveAdapter, edit_json
from workbench.errors import NotSupported, UserError
from workbench.models.adapter_fit import check_fit, same_name
from workbench.models.adapters import (
    adapter_layers,
    attach_adapter,
    base_tensors,
    checksum,
    detach_adapters,
    rewrites_base,
    set_adapter_enabled,
    snapshot_base,
)
from workbench.models.loading import load_model
from workbench.models.sources import describe
from workbench.models.weight_changes import effective_delta

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
advice = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")


def adapter_enabled(peft_model: Any) -> bool:
    """Every layer of the adapter takes part in the next forward pass."""
    return all(not layer.disable_adapters for layer in adapter_layers(peft_model))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_batch()).logits


def test_attached_adapter_equals_pefts_own_and_off_is_the_base(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    reference = peft.PeftModel.from_pretrained(tiny_model("llama"), str(adapter)).eval()
    base = tiny_model("llama")
    bare = logits(base)
    model = attach_adapter(base, describe(adapter))
    assert torch.equal(logits(model), logits(reference))
    assert not torch.equal(logits(model), bare)
    set_adapter_enabled(model, False)
    assert torch.equal(logits(model), bare)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)


def test_switching_nests_and_restores_also_a_mixture(save_adapter: SaveAdapter) -> None:
    model = attach_adapter(tiny_model("llama"), describe(save_adapter()))
    first = next(adapter_layers(model))
    first.enable_adapters(False)
    mixed = logits(model)
    assert not adapter_enabled(model)
    outer = set_adapter_enabled(model, False)
    inner = set_adapter_enabled(model, True)
    assert adapter_enabled(model) and not inner.enabled
    set_adapter_enabled(model, inner)
    assert not any(not layer.disable_adapters for layer in adapter_layers(model))
    set_adapter_enabled(model, outer)
    assert first.disable_adapters and torch.equal(logits(model), mixed)


def test_switching_leaves_gradients_as_they_were() -> None:
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**LORA))
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    set_adapter_enabled(model, set_adapter_enabled(model, False))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert any(before.values())


def test_merged_adapters_are_not_switched() -> None:
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**LORA))
    model.merge_adapter()
    with pytest.raises(UserError, match="merged into the base's weights, and unmerging drifts"):
        set_adapter_enabled(model, False)


KEEPS_BASE: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(**LORA, init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True, init_lora_weights=False),
    "modules_to_save": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[5, 7]),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=16, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@advice
@pytest.mark.parametrize("kind", KEEPS_BASE)
def test_adapters_that_keep_the_base(kind: str) -> None:
    base = tiny_model("llama")
    before, bare = snapshot_base(base), logits(base)
    model = shaken(peft.get_peft_model(base, KEEPS_BASE[kind]()))
    assert not torch.equal(logits(model), bare)
    assert rewrites_base(model, before) is None
    assert adapter_enabled(model), "the check must leave the adapter on"
    set_adapter_enabled(model, False)
    assert torch.equal(logits(model), bare)


@advice
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_rewrite_the_base_are_found(init: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(**LORA, init_lora_weights=init)
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path))
    base = tiny_model("llama")
    before = snapshot_base(base)
    reason = rewrites_base(attach_adapter(base, describe(tmp_path)), before)
    assert reason is not None
    assert reason.startswith(f"the adapter (LORA initialised as {init}) rewrites 6 of the base's own weights")


def test_trained_biases_are_found(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True)
    shaken(peft.get_peft_model(tiny_model("gpt2"), config)).save_pretrained(str(tmp_path))
    base = tiny_model("gpt2")
    before = snapshot_base(base)
    reason = rewrites_base(attach_adapter(base, describe(tmp_path)), before)
    assert reason is not None and "3 of the base's own weights (transformer.h.0.attn.c_attn.bias)" in reason


def test_base_loaded_separately_can_be_compared_with() -> None:
    model = shaken(peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**LORA)))
    assert rewrites_base(model, snapshot_base(tiny_model("llama"))) is None
    reason = rewrites_base(model, snapshot_base(tiny_model("llama", seed=5)))
    assert reason is not None and "rewrites" in reason


def test_base_tensors_keep_their_names_under_an_adapter() -> None:
    for family, names in (("llama", 30), ("gemma2", None)):  # gemma2 ties its head to its embedding
        base = tiny_model(family)
        before = {name: checksum(tensor) for name, tensor in base_tensors(base)}
        assert names is None or len(before) == names
        assert "lm_head.weight" in before or family == "gemma2"
        config = peft.LoraConfig(**LORA, target_parameters=None, init_lora_weights=False)
        assert {n: checksum(t) for n, t in base_tensors(peft.get_peft_model(base, config))} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_checksum_sees_one_changed_value_and_exchanged_rows(dtype: torch.dtype) -> None:
    tensor = (torch.randn(97, 513) * 20).to(dtype)
    same = checksum(tensor.clone())
    assert checksum(tensor) == same
    assert checksum(tensor[1:].clone()) == checksum(tensor[1:])  # also at an odd storage offset
    changed = tensor.clone()
    changed[96, 512] += 1
    assert checksum(changed) != same
    exchanged = torch.cat([tensor[64:], tensor[:64]])
    assert checksum(exchanged) != same


def test_adapter_of_another_width_names_module_and_shapes(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter(hidden_size=32, head_dim=16)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="someone/small-llama")
    base = tiny_model("llama")
    bare = logits(base)
    with pytest.raises(UserError) as error:
        attach_adapter(base, describe(adapter), base_name="big-llama")
    assert "does not fit big-llama: model.layers.0.mlp.down_proj.lora_B is [32, 4] in the adapter" in str(error.value)
    assert "[64, 96]; it was trained on 'someone/small-llama'" in str(error.value)
    assert torch.equal(logits(base), bare) and not list(adapter_layers(base))


def test_adapter_of_a_deeper_or_other_model_names_the_absent_module(save_adapter: SaveAdapter) -> None:
    deeper = save_adapter("deeper", num_hidden_layers=4)
    with pytest.raises(UserError, match=r"2 of its modules are not in the base \(model\.layers\.3\.mlp\.down_proj\)"):
        attach_adapter(tiny_model("llama"), describe(deeper))
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    other = save_adapter("other", config, family="gpt2")
    with pytest.raises(UserError, match=r"3 of its modules are not in the base \(transformer\.h\.0\.attn\.c_attn\)"):
        attach_adapter(tiny_model("llama"), describe(other))


@advice
def test_adapter_with_added_tokens_says_how_to_resize(save_adapter: SaveAdapter) -> None:
    config = peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"])
    adapter = save_adapter("grown", config, vocab_size=308)
    with pytest.raises(UserError, match=r"embed_tokens\.weight is \[308, 64\].*resize_token_embeddings"):
        attach_adapter(tiny_model("llama"), describe(adapter))
    resized = tiny_model("llama")
    resized.resize_token_embeddings(308)
    assert logits(attach_adapter(resized, describe(adapter))).shape[-1] == 308


def test_other_types_that_do_not_fit_leave_the_base_as_it_was(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter("ia3", peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), head_dim=32)
    base = tiny_model("llama")
    bare = logits(base)
    with pytest.raises(UserError, match=r"PEFT cannot put .*ia3 on .*size mismatch"):
        attach_adapter(base, describe(adapter))
    assert not list(adapter_layers(base)) and torch.equal(logits(base), bare)


def test_an_incomplete_adapter_is_refused(save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    base = tiny_model("llama")
    with pytest.raises(UserError, match=r"is incomplete for .*layers\.1\.self_attn\.q_proj\.lora_B"):
        attach_adapter(base, describe(adapter))
    assert not list(adapter_layers(base))


def test_a_base_that_already_carries_an_adapter(save_adapter: SaveAdapter) -> None:
    base = tiny_model("llama")
    bare = logits(base)
    source = describe(save_adapter())
    attach_adapter(base, source)
    with pytest.raises(UserError, match="already carries an adapter"):
        attach_adapter(base, source)
    detach_adapters(base)
    assert torch.equal(logits(base), bare)
    attach_adapter(base, source)


def test_expert_adapters_fit_and_switch(save_adapter: SaveAdapter) -> None:
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["experts.down_proj"], init_lora_weights=False
    )
    adapter = save_adapter("experts", config, family="qwen3moe")
    base = tiny_model("qwen3moe")
    before, bare = snapshot_base(base), logits(base)
    model = attach_adapter(base, describe(adapter))
    assert rewrites_base(model, before) is None
    assert not torch.equal(logits(model), bare)
    set_adapter_enabled(model, False)
    assert torch.equal(logits(model), bare)


def offloaded_base(tmp_path: Path) -> Any:
    """The tiny Llama with its middle layer on disk."""
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    parts = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
    spread = {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}, "model.layers.1": "disk"}
    return load_model(describe(tmp_path / "whole"), device_map=spread, offload_folder=tmp_path / "offload")


def test_a_base_on_disk_takes_an_adapter_and_gives_itself_back(save_adapter: SaveAdapter, tmp_path: Path) -> None:
    adapter = save_adapter()
    whole = attach_adapter(tiny_model("llama"), describe(adapter))
    base = offloaded_base(tmp_path)
    before, bare = snapshot_base(base), logits(base)
    model = attach_adapter(base, describe(adapter))
    assert base.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert torch.equal(logits(model), logits(whole))
    assert rewrites_base(model, before) is None
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(effective_delta(model, name), effective_delta(whole, name))
    set_adapter_enabled(model, False)
    assert torch.equal(logits(model), bare)


def test_an_adapter_that_reads_weights_on_disk_is_refused(save_adapter: SaveAdapter, tmp_path: Path) -> None:
    adapter = save_adapter("dora", peft.LoraConfig(**LORA, use_dora=True))
    base = offloaded_base(tmp_path)
    bare = logits(base)
    with pytest.raises(NotSupported, match="reads weights of the base that are offloaded"):
        attach_adapter(base, describe(adapter))
    assert not list(adapter_layers(base)) and torch.equal(logits(base), bare)


def test_names_of_bases(save_adapter: SaveAdapter) -> None:
    assert same_name("meta-llama/Llama-3.2-1B", "/models/Llama-3.2-1B/")
    assert same_name("a/b", "/home/x/hub/models--a--b/snapshots/0123abc")
    assert not same_name("a/b", "a/b-instruct")
    adapter = save_adapter()
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="someone/else")
    base = tiny_model("llama")
    assert check_fit(describe(adapter), base, "mine/else") == ()
    notes = check_fit(describe(adapter), base, "mine/other")
    assert notes == ("The adapter says it was trained on 'someone/else'; its shapes fit 'mine/other', used here.",)
