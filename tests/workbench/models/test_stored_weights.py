"""A stored tensor is not the weight: what folders hold against what transformers and PEFT make of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import probes
import workbench as wb
from probes.weights.naming import key_of
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.identity import adapter_hash, weights_hash
from workbench.typing import Tensor

Stored = dict[str, Tensor]


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def edited(source: Path, folder: Path, edit: Callable[[Stored], Stored], **config: Any) -> Path:
    shutil.copytree(source, folder)
    tensors = {
        name: tensor.contiguous().clone() for name, tensor in edit(load_file(source / "model.safetensors")).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def changes(result: Any) -> dict[str, float]:
    """Weight -> how far it moved, of those that moved."""
    found = {str(name): float(size) for name, size in zip(result.table["name"], result.table["frobenius"], strict=True)}
    return {name: size for name, size in found.items() if size > 1e-4}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    base = tiny_model("llama")
    return saved(base, tmp_path / "base"), saved(tuned_copy(base), tmp_path / "tuned")


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "model.module.", "_fsdp_wrapped_module.", "model._checkpoint_wrapped_module."]
)
def test_a_wrappers_prefix_is_named(folders: tuple[Path, Path], tmp_path: Path, prefix: str) -> None:
    outer = "model." if prefix.startswith("model.") else ""
    bad = edited(folders[1], tmp_path / "bad", lambda stored: {
        prefix + name.removeprefix(outer): tensor for name, tensor in stored.items()
    })  # fmt: skip
    wrapper = prefix.removeprefix("model.").rstrip(".")
    for call in (probes.weight_delta, wb.load_pair):
        with pytest.raises(UserError, match=f"carry the prefix '{wrapper}'"):
            call(folders[0], bad)


@pytest.mark.parametrize("shape", [(0,), (0, 64), (64, 0)])
def test_shards_that_were_never_gathered_are_named(
    folders: tuple[Path, Path], tmp_path: Path, shape: tuple[int, ...]
) -> None:
    bad = edited(folders[1], tmp_path / "bad", lambda stored: {
        name: torch.empty(shape) if "mlp" in name else tensor for name, tensor in stored.items()
    })  # fmt: skip
    for call in (probes.weight_delta, wb.load_pair):
        with pytest.raises(UserError, match=r"9 empty tensors \(model\.layers\.0\.mlp\.down_proj\.weight.*ZeRO-3"):
            call(folders[0], bad)


def _scaled(stored: Stored, scale: str) -> Stored:
    new: Stored = {}
    for name, tensor in stored.items():
        if "_proj.weight" in name:
            factor = tensor.abs().max() / 448
            new |= {
                name: (tensor / factor).to(torch.float8_e4m3fn),
                name.removesuffix("weight") + scale: factor.view(1, 1),
            }
        else:
            new[name] = tensor
    return new


QUANTIZED: dict[str, Callable[[Stored], Stored]] = {
    "float8 with scales": lambda stored: _scaled(stored, "weight_scale_inv"),
    "float8, other scales": lambda stored: _scaled(stored, "weight_scale"),
    "whole numbers": lambda stored: {
        name: (tensor * 100).to(torch.int8) if "_proj" in name else tensor for name, tensor in stored.items()
    },
    "packed": lambda stored: {
        name.replace("_proj.weight", "_proj.qweight"): tensor.to(torch.int32) if "_proj" in name else tensor
        for name, tensor in stored.items()
    },
    "HQQ": lambda stored: {name.replace("_proj.weight", "_proj.W_q"): tensor for name, tensor in stored.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_whose_config_says_nothing_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    bad = edited(folders[1], tmp_path / "bad", QUANTIZED[kind])
    for call in (probes.weight_delta, wb.load_pair):
        with pytest.raises(UserError, match=r"quantized weights .*has no quantization_config"):
            call(folders[0], bad)


PACKAGES = {
    "compressed-tensors": "compressed_tensors", "gptq": "optimum", "awq": "gptqmodel", "hqq": "hqq",
    "bitsandbytes": "bitsandbytes",
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        {"quant_method": "hqq"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ],
    ids=lambda config: config["quant_method"],
)
def test_quantized_folders_say_load_the_pair(
    folders: tuple[Path, Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    packed = edited(folders[1], tmp_path / "packed", QUANTIZED["packed"], quantization_config=config)
    with pytest.raises(UserError, match=rf"quantized weights \({config['quant_method']}.*load the pair"):
        probes.weight_delta(folders[0], packed)
    if importlib.util.find_spec(PACKAGES[config["quant_method"]]) is None:
        with pytest.raises(UserError, match=rf"\({config['quant_method']}.*needs a package that is absent"):
            wb.load_pair(folders[0], packed)


def test_float8_in_blocks_is_what_it_stands_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    how = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    packed = edited(folders[1], tmp_path / "fp8", QUANTIZED["float8 with scales"], quantization_config=how)
    before, after = (load_file(folder / "model.safetensors") for folder in (folders[0], packed))
    found = changes(probes.weight_delta(wb.load_pair(folders[0], packed)))
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        right = after[name].float() * after[name.replace("weight", "weight_scale_inv")] - before[name]
        assert found[key_of(name)] == pytest.approx(float(right.norm()), rel=1e-4)


def test_the_loaders_own_files_are_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Not the pickle or GGUF beside them, and not a shard that the index no longer names."""
    base, tuned = folders
    right = changes(probes.weight_delta(base, tuned))
    torch.save(tiny_model("llama", seed=9).state_dict(), tuned / "pytorch_model.bin")
    (tuned / "model-Q4_K.gguf").write_bytes(b"GGUF")
    shards = saved(tuned_copy(tiny_model("llama")), tmp_path / "shards", max_shard_size="100KB")
    save_file({"lm_head.weight": torch.zeros(300, 64)}, shards / "model-00009-of-00009.safetensors")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(shards, elsewhere)
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: f"../shards/{file}" for name, file in index["weight_map"].items()}
    (elsewhere / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (tuned, shards, elsewhere):
        assert changes(probes.weight_delta(base, folder)) == right
        assert changes(probes.weight_delta(wb.load_pair(base, folder))) == pytest.approx(right)


def test_tensors_without_a_place_are_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    more = {"model.layers.3.mlp.gate_proj.weight": torch.randn(4, 4), "value_head.weight": torch.randn(3)}
    extra = edited(folders[1], tmp_path / "extra", lambda stored: stored | more)
    result = probes.weight_delta(folders[0], extra)
    assert any("2 tensors in the files of the tuned model are not part" in note for note in result.notes)
    assert changes(result) == changes(probes.weight_delta(*folders))


def test_a_misfit_names_weight_and_shapes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    bad = edited(folders[1], tmp_path / "bad", lambda stored: stored, intermediate_size=80)
    with pytest.raises(
        UserError, match=r"mlp\.down_proj\.weight is \[64, 96\] in the files and \[64, 80\] by its config"
    ):
        wb.load_model(bad)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": {"a": "gone.safetensors"}}])
def test_a_broken_index_is_one_sentence(folders: tuple[Path, Path], content: dict[str, Any]) -> None:
    (folders[1] / "model.safetensors").unlink()
    (folders[1] / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"weight_map|misses the shard"):
        wb.load_pair(*folders)


LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "o_proj"]}
ADAPTERS: dict[str, tuple[str, Any]] = {
    "lora_bias": ("llama", peft.LoraConfig(**LORA, lora_bias=True)),
    "lora_bias on a bias": ("qwen2", peft.LoraConfig(**LORA, lora_bias=True, use_rslora=True)),
    "all biases": ("qwen2", peft.LoraConfig(**LORA, bias="all")),
    "its own biases": ("qwen2", peft.LoraConfig(**LORA, bias="lora_only")),
    "trained tokens": ("llama", peft.LoraConfig(**LORA, trainable_token_indices=[3, 7])),
    "trained tokens of both": (
        "llama", peft.LoraConfig(**LORA, trainable_token_indices={"embed_tokens": [1], "lm_head": [4]})
    ),
    "whole modules": ("llama", peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "input_layernorm"])),
    "a head that was tied": ("gemma3", peft.LoraConfig(r=4, target_modules=["lm_head"])),
    "a whole head that was tied": ("gemma3", peft.LoraConfig(**LORA, modules_to_save=["lm_head"])),
    "embeddings that are tied": ("gemma3", peft.LoraConfig(r=4, target_modules=["embed_tokens"])),
    "fused experts": ("mixtral", peft.LoraConfig(
        r=4, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )),
    "norms": ("llama", peft.LNTuningConfig(target_modules=["input_layernorm"])),
    "patterns": ("llama", peft.LoraConfig(
        r=4, target_modules="all-linear", rank_pattern={"layers.1.*q_proj": 2}, alpha_pattern={"up_proj": 3}
    )),
}  # fmt: skip


def _trained(model: Any) -> None:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw).to(parameter))


def _moved(model: Any, base: Any) -> dict[str, float]:
    """Module -> Frobenius norm of how far its output on the identity moved, by forwards of PEFT's own layers alone."""
    from workbench.models.adapter_layers import bare_module

    moved: dict[str, float] = {}
    for name, layer in model.get_base_model().named_modules():
        inner = bare_module(layer)
        if inner is None or not isinstance(inner, torch.nn.Linear) or "_adapter" in name or ".base_layer" in name:
            continue
        eye = torch.eye(inner.in_features)[None]
        own = base.get_submodule(name)
        zero = layer(torch.zeros_like(eye[:, :1]))[0] - own(torch.zeros_like(eye[:, :1]))[0]
        moved[key_of(f"{name}.weight")] = float((layer(eye)[0] - own(eye)[0] - zero).norm())
        moved[key_of(f"{name}.bias")] = float(zero.norm())
    return {name: size for name, size in moved.items() if size > 1e-4}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_change_what_pefts_layers_compute(kind: str, tmp_path: Path) -> None:
    family, config = ADAPTERS[kind]
    base = saved(tiny_model(family), tmp_path / "base")
    trained = peft.get_peft_model(tf.AutoModelForCausalLM.from_pretrained(base), config)
    _trained(trained)
    trained.save_pretrained(tmp_path / "adapter")
    live = peft.PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    pair, ids = wb.load_pair(base, tmp_path / "adapter"), torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(pair.tuned.forward(ids), live(input_ids=ids).logits)
        right = _moved(live, tiny_model(family))
    assert pair.tuned.identity.adapter == adapter_hash(tmp_path / "adapter")
    assert pair.base.identity.weights == weights_hash(base)
    for found in (changes(probes.weight_delta(pair)), changes(probes.weight_delta(base, live))):
        assert found and {name: found[name] for name in right} == pytest.approx(right, rel=2e-3)
    try:
        from_files = changes(probes.weight_delta(base, tmp_path / "adapter"))
    except UserError as error:
        assert "load the pair" in str(error)
    else:
        assert from_files == pytest.approx(found, rel=1e-4)


def test_repeated_layers_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**LORA, layer_replication=[[0, 2], [1, 3]]))
    model.save_pretrained(tmp_path / "adapter")
    for given in (tmp_path / "adapter", model):
        with pytest.raises(UserError, match="repeats layers of its base"):
            wb.load_pair(folders[0], given)


def test_an_activated_lora_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """It would act on nothing here: PEFT tells it from which token on."""
    config = peft.LoraConfig(**LORA, alora_invocation_tokens=[20, 21], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama"), config)
    model.save_pretrained(tmp_path / "adapter")
    for given in (tmp_path / "adapter", model):
        with pytest.raises(UserError, match="is an activated LoRA"):
            wb.load_pair(folders[0], given)


@pytest.mark.parametrize("side", ["tuned", "base", "both"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_head_stored_beside_embeddings_that_it_is_tied_to_is_read_as_it_is_loaded(
    tmp_path: Path, side: str, apart: bool
) -> None:
    """transformers ties the two only where they hold the same numbers."""
    base = tiny_model("llama", tie_word_embeddings=True)
    given = {role: saved(base, tmp_path / role) for role in ("base", "tuned")}

    def with_head(tensors: Stored) -> Stored:
        head = tensors["model.embed_tokens.weight"].clone()
        return {**tensors, "lm_head.weight": head + 0.5 * torch.eye(*head.shape) if apart else head}

    for role in given if side == "both" else [side]:
        given[role] = edited(given[role], tmp_path / f"{role}-head", with_head)
    found = changes(probes.weight_delta(*map(str, given.values())))
    loaded = {role: tf.AutoModelForCausalLM.from_pretrained(folder) for role, folder in given.items()}
    heads = [model.lm_head.weight.detach() for model in loaded.values()]
    wanted = float((heads[0] - heads[1]).norm())
    assert found.get("lm_head.weight", 0.0) == pytest.approx(wanted, rel=1e-4)
    assert (wanted > 1) == (apart and side != "both")
    pair = wb.load_pair(*given.values(), tokenizer=tokenizer())
    assert changes(probes.weight_delta(pair)).get("lm_head.weight", 0.0) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("later", [True, False])
def test_a_tensor_in_two_shards_is_told_and_read_as_transformers_does(
    folders: tuple[Path, Path], tmp_path: Path, later: bool
) -> None:
    bad = saved(tuned_copy(tiny_model("llama")), tmp_path / "shards", max_shard_size="100KB")
    shards = sorted(bad.glob("model-*.safetensors"))
    first, last = load_file(shards[0]), load_file(shards[-1])
    name = next(iter(last)) if later else next(iter(first))
    (first if later else last)[name] = (last if later else first)[name] + 1.0
    save_file(first, shards[0], metadata={"format": "pt"})
    save_file(last, shards[-1], metadata={"format": "pt"})
    right = dict(tf.AutoModelForCausalLM.from_pretrained(bad).named_parameters())[name]
    moved = float((right - dict(tiny_model("llama").named_parameters())[name]).detach().norm())
    from_files = probes.weight_delta(folders[0], bad)
    pair = wb.load_pair(folders[0], bad)
    for result in (from_files, probes.weight_delta(pair)):
        assert changes(result).get(key_of(name), 0.0) == pytest.approx(moved, abs=1e-4)
    for said in (" ".join(from_files.notes), " ".join(pair.differences.sentences())):
        assert f"1 tensors in more than one of its shards ({name} in {shards[0].name}, {shards[-1].name})" in said


UNLOADABLE: dict[str, tuple[Callable[[Stored], Stored], str]] = {
    "a weight is absent": (
        lambda stored: {name: t for name, t in stored.items() if "layers.1.mlp.up_proj" not in name},
        r"lacks 1 weights its config asks for \(model\.layers\.1\.mlp\.up_proj",
    ),
    "the head is absent": (
        lambda stored: {name: t for name, t in stored.items() if "lm_head" not in name}, r"lacks 1 .*\(lm_head",
    ),
    "an adapter's prefix": (
        lambda stored: {f"base_model.model.{name}": t for name, t in stored.items()}, "lacks 30 weights"
    ),
    "another model's prefix": (
        lambda stored: {f"language_model.{name}": t for name, t in stored.items()}, "lacks 30 weights"
    ),
    "another shape": (
        lambda stored: {name: t.T if "up_proj" in name else t for name, t in stored.items()},
        r"up_proj\.weight is \[64, 96\] in the files and \[96, 64\] by its config",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNLOADABLE)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_files_that_do_not_make_the_model_of_their_config_are_refused_unloaded_too(
    folders: tuple[Path, Path], tmp_path: Path, what: str, side: str
) -> None:
    edit, said = UNLOADABLE[what]
    bad = edited(folders[side == "tuned"], tmp_path / "bad", edit)
    given = (bad, folders[1]) if side == "base" else (folders[0], bad)
    for call in (probes.weight_delta, wb.load_pair):
        with pytest.raises(UserError, match=said):
            call(*given)
