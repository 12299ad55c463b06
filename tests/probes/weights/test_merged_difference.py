"""Every entry of an adapter's change of weights against PEFT's own: merged and unloaded, minus the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import workbench as wb
from probes.weights.naming import key_of, place_of
from probes.weights.sources import NotInFiles, Opened, open_weights
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.weight_changes import adapted_modules
from workbench.typing import Tensor

pytestmark = pytest.mark.filterwarnings("ignore")
Weights = dict[str, Tensor]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj", "down_proj"]}
CONV1D: dict[str, Any] = {"r": 4, "target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 8}, "alpha_pattern": {"o_proj": 3, r".*\.2\..*": 11},
}  # fmt: skip
EXPERTS: dict[str, Any] = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
BLOCKS = peft.tuners.lora.config.BdLoraConfig(
    target_modules_bd_a=["q_proj"], target_modules_bd_b=["o_proj"], nblocks=2, match_strict=True
)
KINDS: dict[str, tuple[str, Any]] = {
    "LoRA": ("llama", peft.LoraConfig(**LORA)),
    "rsLoRA": ("llama", peft.LoraConfig(**LORA, use_rslora=True)),
    "DoRA": ("llama", peft.LoraConfig(**LORA, use_dora=True)),
    "DoRA and rsLoRA": ("llama", peft.LoraConfig(**LORA, use_dora=True, use_rslora=True)),
    "DoRA with patterns": ("llama", peft.LoraConfig(**LORA, **PATTERNS, use_dora=True, use_rslora=True)),
    "patterns": ("llama", peft.LoraConfig(**LORA, **PATTERNS)),
    "rsLoRA with patterns": ("llama", peft.LoraConfig(**LORA, **PATTERNS, use_rslora=True)),
    "lora_bias beside biases": ("qwen2", peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_bias=True)),
    "biases of the base": ("qwen2", peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias="all")),
    "Conv1D": ("gpt2", peft.LoraConfig(**CONV1D)),
    "Conv1D, DoRA": ("gpt2", peft.LoraConfig(**CONV1D, use_dora=True)),
    "Conv1D, rsLoRA with patterns": ("gpt2", peft.LoraConfig(**CONV1D, use_rslora=True, rank_pattern={"c_fc": 2})),
    "embeddings": ("llama", peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "embeddings, rsLoRA": ("llama", peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], use_rslora=True)),
    "embeddings, DoRA": ("llama", peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], use_dora=True)),
    "modules_to_save": ("llama", peft.LoraConfig(**LORA, modules_to_save=["lm_head", "post_attention_layernorm"])),
    "trained tokens": ("llama", peft.LoraConfig(**LORA, trainable_token_indices=[3, 7, 299])),
    "some layers": ("llama", peft.LoraConfig(**LORA, layers_to_transform=[1])),
    "fused experts": ("mixtral", peft.LoraConfig(r=4, target_modules=["q_proj"], **EXPERTS)),
    "PiSSA": ("llama", peft.LoraConfig(**LORA, init_lora_weights="pissa")),
    "OLoRA": ("llama", peft.LoraConfig(**LORA, init_lora_weights="olora")),
    "orthogonal": ("llama", peft.LoraConfig(**LORA, init_lora_weights="orthogonal")),
    "LoHa": ("llama", peft.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"])),
    "IA3": ("llama", peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "IA3 on biases": ("qwen2", peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[])),
    "GLoRA on biases": ("qwen2", peft.GloraConfig(target_modules=["q_proj", "k_proj"])),
    "blocks": ("llama", peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"], use_bdlora=BLOCKS)),
    "OFT": ("llama", peft.OFTConfig(r=0, oft_block_size=16, target_modules=["q_proj", "down_proj"])),
    "norms": ("llama", peft.LNTuningConfig(target_modules=["input_layernorm"])),
}  # fmt: skip


def weights(model: Any) -> Weights:
    return {key_of(name): tensor.detach().clone() for name, tensor in model.named_parameters(remove_duplicate=False)}


def trained(model: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (one for one in model.parameters() if one.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def loaded(base: Path) -> Any:
    return tf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def change_read(opened: Opened) -> Weights:
    """Key -> tuned minus base, [as the base's], of every weight that is named."""
    found = {}
    for key, factors in opened.factors.items():
        change = factors.up @ factors.down
        turned = opened.layout.turned(place_of(key).module, 2) and "wte" not in key
        found[key] = change.T if turned else change
    for key, read in opened.tuned.items():
        if key not in found:
            found[key] = (read().double() - opened.base[key]().double()).float()
    return found


def check(found: Weights, right: Weights) -> None:
    assert any(float(change.abs().max()) > 1e-3 for change in right.values()), "an adapter that changes nothing"
    for key, change in right.items():
        if key not in found:
            assert float(change.abs().max()) < 1e-6, f"{key} changed and is not named"
            continue
        assert found[key].shape == change.shape, key
        assert torch.allclose(found[key], change, atol=2e-5, rtol=1e-4), (
            f"{key}: off by {float((found[key] - change).abs().max()):.2g}"
        )
    for key in found.keys() - right.keys():  # a bias that the base does not have and merging makes
        assert key.endswith(".bias"), key


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_is_that_of_merging_and_unloading(kind: str, tmp_path: Path) -> None:
    family, config = KINDS[kind]
    tiny_model(family).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    trained(peft.get_peft_model(loaded(tmp_path / "base"), config)).save_pretrained(tmp_path / "adapter")
    bare = weights(loaded(tmp_path / "base"))
    merged = weights(peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter").merge_and_unload())
    right = {key: now - bare[key] if key in bare else now for key, now in merged.items()}
    check(change_read(open_weights(wb.load_pair(tmp_path / "base", tmp_path / "adapter"))), right)
    try:
        from_files = open_weights(str(tmp_path / "base"), str(tmp_path / "adapter"))
    except NotInFiles as error:
        assert "load the pair" in str(error)
    else:
        check(change_read(from_files), right)


def _scaled(model: Any) -> None:
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", -1.75)


SWITCHED: dict[str, Callable[[Any], Any]] = {
    "two at once": lambda model: model.base_model.set_adapter(["default", "other"]),
    "the other": lambda model: model.set_adapter("other"),
    "scaled": _scaled,
    "two at once, one scaled": lambda model: (model.base_model.set_adapter(["default", "other"]), _scaled(model)),
}


@pytest.mark.parametrize("how", SWITCHED)
def test_switched_and_scaled_ones_too(how: str) -> None:
    configs = peft.LoraConfig(**LORA, init_lora_weights=False), peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], use_rslora=True, alpha_pattern={"v_proj": 5}, init_lora_weights=False
    )  # fmt: skip
    bare = weights(tiny_model("llama"))

    def adapted() -> Any:
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny_model("llama"), configs[0])
        model.add_adapter("other", configs[1])
        SWITCHED[how](model)
        return model.eval()

    live = adapted()
    merged = adapted()
    merged = weights(merged.merge_and_unload(adapter_names=list(merged.active_adapters)))
    right = {key: now - bare[key] for key, now in merged.items()}
    pair = wb.load_pair(live.get_base_model(), live, tokenizer=tokenizer())
    check(change_read(open_weights(pair)), right)
    assert adapted_modules(live)


PREFIXES: dict[str, tuple[Callable[[str], str], str]] = {
    "the adapter's name": (lambda name: name.replace(".weight", ".default.weight"), "the adapter's name 'default'"),
    "FSDP": (lambda name: name.replace("model.layers", "_fsdp_wrapped_module.model.layers"), "_fsdp_wrapped_module"),
    "FSDP inside": (
        lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"), "_fsdp_wrapped_module"
    ),
    "compiled": (lambda name: f"_orig_mod.{name}", "_orig_mod"),
    "DataParallel": (lambda name: f"module.{name}", "'module'"),
    "checkpointed": (
        lambda name: name.replace(".mlp", "._checkpoint_wrapped_module.mlp"), "_checkpoint_wrapped_module"
    ),
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_that_peft_would_pass_over_are_refused(prefix: str, tmp_path: Path) -> None:
    rename, said = PREFIXES[prefix]
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    trained(peft.get_peft_model(loaded(tmp_path / "base"), peft.LoraConfig(**LORA))).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    for call in (wb.load_pair, open_weights):
        with pytest.raises(UserError, match=said):
            call(str(tmp_path / "base"), str(tmp_path / "a"))
